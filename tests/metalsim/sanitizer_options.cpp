// What the sanitizers cannot know about libraries that were built without them; part of every program that is tested.
extern "C" {

[[gnu::used, gnu::visibility("default")]] const char* __lsan_default_suppressions() {
    return "leak:libobjc.so\n";  // classes, selectors and their tables live until the process ends
}

[[gnu::used, gnu::visibility("default")]] const char* __tsan_default_suppressions() {
    // Their reference counts order what they free; TSan does not see these.
    return "race:libBlocksRuntime.so\n"
           "race:libobjc.so\n";
}
}
