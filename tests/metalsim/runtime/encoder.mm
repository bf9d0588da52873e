#include "runtime/encoder.h"

namespace metalsim {

std::string EncoderState::scope_text() {
    return join_scope(commands->groups, text_of(label.get()), groups);
}

uint32_t EncoderState::scope_index() {
    if (!scope) {
        scope = static_cast<uint32_t>(commands->scopes.size());
        commands->scopes.push_back(scope_text());
    }
    return *scope;
}

void EncoderState::misuse(Problem problem, std::string detail) {
    commands->misuse(problem, pipeline != nullptr ? pipeline->name : "", scope_text(), std::move(detail), index);
}

void EncoderState::report_late(const char* method) {
    Report report;
    report.problem = Problem::api;
    report.scope = scope_text();
    report.detail = std::string(method) + " after endEncoding";
    commands->fail({MTLCommandBufferErrorInvalidResource, report.text(), index});
    add_report(std::move(report));
}

void EncoderState::end() {
    if (!open("endEncoding")) return;
    if (!groups.empty()) misuse(Problem::api, "endEncoding with an open debug group");
    ended = true;
    record().ended = true;
    commands->encoding = false;
    commands->commands.push_back({Command::Kind::end_encoder, index});
}

void EncoderState::abandon() {
    if (ended) return;
    misuse(Problem::api, "an encoder was released without endEncoding");
}

void EncoderState::set_label(NSString* text) {
    label = Ref<NSString*>::adopt([text copy]);
    record().label = text_of(text);
    scope.reset();
}

void EncoderState::push(NSString* group) {
    groups.emplace_back(text_of(group));
    scope.reset();
}

void EncoderState::pop() {
    if (groups.empty()) return misuse(Problem::api, "popDebugGroup without pushDebugGroup");
    groups.pop_back();
    scope.reset();
}

void EncoderState::signpost(NSString* text) {
    record().signposts.emplace_back(text_of(text));
}

void EncoderState::wait_for(id<MTLFence> fence) {
    if (!open("waitForFence:")) return;
    record().waits.push_back(state<FenceState>(fence).value);
}

void EncoderState::update(id<MTLFence> fence) {
    if (!open("updateFence:")) return;
    record().updates.push_back(state<FenceState>(fence).value);
}

}  // namespace metalsim
