#pragma once

#import <Metal/Metal.h>

// The classes behind Metal's protocols.

@interface MetalsimDevice : NSObject <MTLDevice>
@end
@interface MetalsimHeap : NSObject <MTLHeap>
@end
@interface MetalsimBuffer : NSObject <MTLBuffer>
@end
@interface MetalsimFence : NSObject <MTLFence>
@end
@interface MetalsimEvent : NSObject <MTLEvent>
@end
@interface MetalsimSharedEvent : NSObject <MTLSharedEvent>
@end
@interface MetalsimResidencySet : NSObject <MTLResidencySet>
@end
@interface MetalsimCounter : NSObject <MTLCounter>
@end
@interface MetalsimCounterSet : NSObject <MTLCounterSet>
@end
@interface MetalsimCounterSampleBuffer : NSObject <MTLCounterSampleBuffer>
@end
@interface MetalsimLibrary : NSObject <MTLLibrary>
@end
@interface MetalsimFunction : NSObject <MTLFunction>
@end
@interface MetalsimBinding : NSObject <MTLBufferBinding, MTLThreadgroupBinding>
@end
@interface MetalsimPipeline : NSObject <MTLComputePipelineState>
@end
@interface MetalsimBinaryArchive : NSObject <MTLBinaryArchive>
@end
@interface MetalsimCommandQueue : NSObject <MTLCommandQueue>
@end
@interface MetalsimCommandBuffer : NSObject <MTLCommandBuffer>
@end
@interface MetalsimEncoderInfo : NSObject <MTLCommandBufferEncoderInfo>
@end
@interface MetalsimComputeEncoder : NSObject <MTLComputeCommandEncoder>
@end
@interface MetalsimBlitEncoder : NSObject <MTLBlitCommandEncoder>
@end
