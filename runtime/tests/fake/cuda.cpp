// A CUDA driver without a GPU, to test the host code: memory is ordinary memory, kernels are functions that `nvrtc.cpp`
// compiled, and streams are queues.
//
// Nothing runs when it is enqueued. When a thread waits, the heads of all queues that may run do so in an order that
// changes from time to time, so that a dependency that no event expresses shows as a wrong result. A capture records
// operations and their events, and refuses what a real one refuses (work on a stream that has not joined, events from
// outside, streams that are not joined at the end). A replay runs the operations in its own queues.

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

enum { OK = 0, INVALID = 1, NOT_FOUND = 500, NOT_READY = 600, UNJOINED = 904, ISOLATED = 905 };

// One recording of an event.
struct Mark {
    bool done = false;
    int capture = 0;
};
typedef std::shared_ptr<Mark> MarkP;

struct Op {
    enum Kind { RUN, RECORD, WAIT } kind;
    std::function<void()> run;
    // Whether it may run, for operations that wait for more than events.
    std::function<bool()> ready;
    MarkP mark;
};
struct Event { MarkP mark; };
struct Stream { std::deque<Op> queue; int capture = 0; };
struct Graph { std::vector<std::pair<Stream*, Op>> ops; };
struct Function { void (*run)(char*, const long long*); int params, cooperative; int (*launch)(void (*)(char*, const long long*), unsigned, unsigned, int, int, char*, const long long*);
    // Bytes of shared memory that a launch may use; more must be allowed before.
    unsigned shared;
};
struct Module { void* library; std::map<std::string, Function> functions; };

static std::recursive_mutex lock;
static std::set<Stream*> streams;
static unsigned turn = 12345;
static int captures = 0;
// Every thread captures separately.
static thread_local int capturing = 0;
static thread_local Stream* origin = nullptr;
static thread_local Graph* captured = nullptr;
static const char* broken = nullptr;

static unsigned draw(unsigned n) { turn = turn * 1664525u + 1013904223u; return (turn >> 16) % n; }

static bool step(std::deque<Op>& queue) {
    if (queue.empty()) return false;
    Op& op = queue.front();
    if (op.kind == Op::WAIT && !op.mark->done) return false;
    if (op.ready && !op.ready()) return false;
    Op now = op;
    queue.pop_front();
    if (now.kind == Op::RECORD) now.mark->done = true;
    if (now.kind == Op::RUN) now.run();
    return true;
}

// The queues of graphs that are being replayed.
struct Replay { std::map<Stream*, std::deque<Op>> queues; };
static std::set<Replay*> replays;

// Runs all queues as far as possible, in a varying order.
static void run_all() {
    for (bool moved = true; moved;) {
        moved = false;
        std::vector<std::deque<Op>*> queues;
        for (auto* s : streams) queues.push_back(&s->queue);
        for (auto* r : replays) for (auto& q : r->queues) queues.push_back(&q.second);
        for (size_t i = queues.size(); i > 1; i--) std::swap(queues[i - 1], queues[draw(i)]);
        for (auto* q : queues) {
            // Sometimes one operation, sometimes all that may run.
            const bool all = draw(2);
            while (step(*q)) { moved = true; if (!all) break; }
        }
        // A replay that has just begun has not advanced yet.
        static size_t known = 0;
        if (replays.size() != known) { known = replays.size(); moved = true; }
    }
}
static bool idle() {
    for (auto* s : streams) if (!s->queue.empty()) return false;
    return true;
}

// All enqueued operations go through this function.
static int enqueue(Stream* s, Op op) {
    if (capturing && s->capture == capturing) {
        captured->ops.push_back({s, op});
        return OK;
    }
    if (capturing) { broken = "work on a stream that has not joined the capture"; return ISOLATED; }
    s->queue.push_back(op);
    return OK;
}

#define API extern "C" __attribute__((visibility("default")))
#define LOCKED std::lock_guard<std::recursive_mutex> held(lock)

// For the other fake libraries.
API int fake_enqueue(void* s, void (*f)(void*), void* data, bool (*ready)(void*)) {
    LOCKED;
    Op op{Op::RUN, [=] { f(data); }, nullptr, nullptr};
    if (ready) op.ready = [=] { return ready(data); };
    return enqueue((Stream*)s, op);
}

API int cuInit(unsigned) { return OK; }
// The number of devices is FAKE_DEVICES, one by default.
static int devices() { const char* n = getenv("FAKE_DEVICES"); return n ? atoi(n) : 1; }
static thread_local int device = 0;
API int fake_device() { return device; }
API int cuDeviceGetCount(int* n) { *n = devices(); return OK; }
API int cuDeviceGet(int* d, int i) { *d = i; return i >= 0 && i < devices() ? OK : INVALID; }
API int cuDeviceGetName(char* name, int n, int) { snprintf(name, n, "a fake"); return OK; }
API int cuDeviceGetAttribute(int* v, int which, int) { *v = which == 75 ? 9 : 0; return OK; }
API int cuDevicePrimaryCtxRetain(void** c, int d) { *c = (void*)(uint64_t)(d + 1); return OK; }
API int cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API int cuCtxSetCurrent(void* c) { device = (int)(uint64_t)c - 1; return OK; }
// Also waits for work that other threads have enqueued, as a real driver does.
API int cuCtxSynchronize() {
    for (int i = 0; i < 20000; i++) {
        { LOCKED; run_all(); if (idle()) return OK; }
        usleep(500);
    }
    broken = "waiting for the whole context, which never ends";
    return NOT_READY;
}
API int cuMemGetInfo_v2(size_t* free, size_t* all) { *free = *all = 1ull << 33; return OK; }
API int cuGetErrorName(int e, const char** t) { *t = "error"; return OK; }
API int cuGetErrorString(int e, const char** t) {
    static thread_local char text[200];
    snprintf(text, sizeof text, "fake error %d%s%s", e, broken ? ": " : "", broken ? broken : "");
    *t = text;
    return OK;
}
API int cuMemAlloc_v2(uint64_t* p, size_t n) {
    if (n > (1ull << 33)) return 2;
    *p = (uint64_t)aligned_alloc(512, (n + 4096) / 512 * 512);
    memset((void*)*p, 0xcc, n);
    return OK;
}
API int cuMemFree_v2(uint64_t p) { LOCKED; run_all(); free((void*)p); return OK; }
API int cuMemsetD8_v2(uint64_t p, unsigned char v, size_t n) { memset((void*)p, v, n); return OK; }

API int cuMemHostAlloc(void** p, size_t n, unsigned) { *p = aligned_alloc(64, (n + 63) / 64 * 64); return *p ? OK : 2; }
API int cuMemFreeHost(void* p) { LOCKED; run_all(); free(p); return OK; }
API int cuMemHostGetDevicePointer_v2(uint64_t* d, void* p, unsigned) { *d = (uint64_t)p; return OK; }

API int cuStreamCreate(Stream** s, unsigned) { LOCKED; *s = new Stream; streams.insert(*s); return OK; }
API int cuStreamDestroy_v2(Stream* s) { LOCKED; streams.erase(s); delete s; return OK; }
API int cuMemsetD8Async(uint64_t p, unsigned char v, size_t n, Stream* s) {
    LOCKED;
    return enqueue(s, {Op::RUN, [=] { memset((void*)p, v, n); }, nullptr, nullptr});
}
API int cuStreamSynchronize(Stream* s) {
    for (int i = 0; i < 20000; i++) {
        { LOCKED; run_all(); if (s->queue.empty()) return OK; }
        usleep(500);
    }
    broken = "a stream that waits forever";
    return NOT_READY;
}
API int cuStreamQuery(Stream* s) { LOCKED; run_all(); return s->queue.empty() ? OK : NOT_READY; }
API int cuStreamWriteValue32_v2(Stream* s, uint64_t p, unsigned v, unsigned) {
    LOCKED;
    return enqueue(s, {Op::RUN, [=] { __atomic_store_n((unsigned*)p, v, __ATOMIC_RELEASE); }, nullptr, nullptr});
}
// Waits until the word is at least the value.
API int cuStreamWaitValue32_v2(Stream* s, uint64_t p, unsigned v, unsigned how) {
    LOCKED;
    if (how != 0) return INVALID;
    return enqueue(s, {Op::RUN, [] {}, [=] { return (int)(__atomic_load_n((unsigned*)p, __ATOMIC_ACQUIRE) - v) >= 0; }, nullptr});
}
API int cuEventCreate(Event** e, unsigned) { *e = new Event; return OK; }
API int cuEventDestroy_v2(Event* e) { delete e; return OK; }
API int cuEventRecord(Event* e, Stream* s) {
    LOCKED;
    e->mark = std::make_shared<Mark>();
    e->mark->capture = s->capture;
    return enqueue(s, {Op::RECORD, nullptr, nullptr, e->mark});
}
API int cuStreamWaitEvent(Stream* s, Event* e, unsigned) {
    LOCKED;
    if (!e->mark) return OK;
    if (capturing) {
        if (e->mark->capture != capturing) { broken = "an event from outside the capture"; return ISOLATED; }
        s->capture = capturing;
    } else if (e->mark->capture) {
        broken = "an event of a capture outside of it";
        return ISOLATED;
    }
    return enqueue(s, {Op::WAIT, nullptr, nullptr, e->mark});
}
API int cuEventQuery(Event* e) { LOCKED; run_all(); return !e->mark || e->mark->done ? OK : NOT_READY; }
API int cuEventSynchronize(Event* e) {
    for (int i = 0; i < 20000; i++) {
        if (cuEventQuery(e) == OK) return OK;
        usleep(500);
    }
    broken = "an event that never comes";
    return NOT_READY;
}
API int cuEventElapsedTime_v2(float* ms, Event*, Event*) { LOCKED; *ms = 1 + draw(100); return OK; }

API int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t n, Stream* s) {
    LOCKED;
    return enqueue(s, {Op::RUN, [=] { memcpy((void*)to, from, n); }, nullptr, nullptr});
}
API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, Stream* s) {
    LOCKED;
    return enqueue(s, {Op::RUN, [=] { memcpy((void*)to, (void*)from, n); }, nullptr, nullptr});
}
API int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t n, Stream* s) {
    LOCKED;
    return enqueue(s, {Op::RUN, [=] { memcpy(to, (void*)from, n); }, nullptr, nullptr});
}

// An image is a shared library: its length in 8 bytes, then the file.
API int cuModuleLoadData(Module** m, const char* image) {
    static int count = 0;
    LOCKED;
    uint64_t n;
    memcpy(&n, image, 8);
    char path[200];
    snprintf(path, sizeof path, "/tmp/fake-module-%d-%d.so", getpid(), count++);
    FILE* f = fopen(path, "wb");
    if (!f || fwrite(image + 8, 1, n, f) != n) return INVALID;
    fclose(f);
    void* library = dlopen(path, RTLD_NOW);
    unlink(path);
    if (!library) { broken = strdup(dlerror()); return INVALID; }
    *m = new Module{library, {}};
    return OK;
}
API int cuModuleGetFunction(Function** f, Module* m, const char* name) {
    LOCKED;
    auto get = [&](const char* prefix) { return dlsym(m->library, (std::string(prefix) + name).c_str()); };
    void *run = get("run_"), *params = get("params_"), *cooperative = get("cooperative_");
    if (!run || !params) return NOT_FOUND;
    Function made{(void (*)(char*, const long long*))run, *(int*)params, *(int*)cooperative, nullptr, 48 << 10};
    made.launch = (decltype(made.launch))dlsym(m->library, "launch");
    *f = &(m->functions[name] = made);
    return OK;
}
// Kept loaded, because captured operations may still refer to its functions.
API int cuModuleUnload(Module*) { return OK; }
API int cuFuncSetAttribute(Function* f, int which, int value) {
    if (which != 8 || value < 0 || value > 227 << 10) return INVALID;
    f->shared = value;
    return OK;
}
API int cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, Stream* s, void** params, void**) {
    LOCKED;
    if (shared > f->shared) return INVALID;
    if (gx == 0 || bx == 0 || bx > 1024 || gy * gz * by * bz != 1) return INVALID;
    char* A = *(char**)params[0];
    std::vector<long long> args;
    for (int i = 0; i < f->params; i++) args.push_back(*(long long*)params[i + 1]);
    return enqueue(s, {Op::RUN, [=] {
        if (f->launch(f->run, gx, bx, f->cooperative, draw(2), A, args.data())) { fprintf(stderr, "a barrier that not all threads reach\n"); abort(); }
    }, nullptr, nullptr});
}

API int cuStreamBeginCapture_v2(Stream* s, int) {
    LOCKED;
    if (capturing) return INVALID;
    capturing = ++captures;
    origin = s;
    s->capture = capturing;
    captured = new Graph;
    return OK;
}
API int cuStreamEndCapture(Stream* s, Graph** g) {
    LOCKED;
    if (!capturing || s != origin) return INVALID;
    const size_t n = captured->ops.size();
    // The last operation of the origin must depend on every operation that does work.
    std::vector<bool> reached(n, false);
    std::map<Mark*, size_t> records;
    std::vector<long> before(n, -1);
    std::map<Stream*, long> last;
    for (size_t i = 0; i < n; i++) {
        auto& [stream, op] = captured->ops[i];
        if (last.count(stream)) before[i] = last[stream];
        last[stream] = i;
        if (op.kind == Op::RECORD) records[op.mark.get()] = i;
    }
    std::vector<long> open;
    if (last.count(origin)) open.push_back(last[origin]);
    while (!open.empty()) {
        const long i = open.back();
        open.pop_back();
        if (i < 0 || reached[i]) continue;
        reached[i] = true;
        open.push_back(before[i]);
        auto& op = captured->ops[i].second;
        if (op.kind == Op::WAIT && records.count(op.mark.get())) open.push_back(records[op.mark.get()]);
    }
    int code = OK;
    for (size_t i = 0; i < n; i++)
        if (!reached[i] && captured->ops[i].second.kind == Op::RUN) { broken = "a stream that was not joined"; code = UNJOINED; }
    for (auto* x : streams) if (x->capture == capturing) x->capture = 0;
    capturing = 0;
    *g = captured;
    return code;
}
API int cuGraphInstantiateWithFlags(Graph** e, Graph* g, unsigned long long) { *e = new Graph(*g); return OK; }
API int cuGraphDestroy(Graph* g) { delete g; return OK; }
API int cuGraphExecDestroy(Graph* g) { delete g; return OK; }
API int cuGraphLaunch(Graph* g, Stream* s) {
    LOCKED;
    // It is at the head of its queue until all of it has run.
    auto replay = std::make_shared<Replay*>(nullptr);
    Op op{Op::RUN, [=] { replays.erase(*replay); }, nullptr, nullptr};
    op.ready = [=] {
        if (*replay) {
            for (auto& q : (*replay)->queues) if (!q.second.empty()) return false;
            return true;
        }
        *replay = new Replay;
        std::map<Mark*, MarkP> marks;
        for (auto [stream, op] : g->ops) {
            if (op.mark) {
                auto& fresh = marks[op.mark.get()];
                if (!fresh) fresh = std::make_shared<Mark>();
                op.mark = fresh;
            }
            (*replay)->queues[stream].push_back(op);
        }
        replays.insert(*replay);
        return g->ops.empty();
    };
    return enqueue(s, op);
}
