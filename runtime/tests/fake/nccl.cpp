// NCCL without GPUs: ranks are threads or processes on one machine. A collective runs on the fake driver's queues when
// it is at the head of the queues of all ranks: every rank then writes the data that it sends to a file, and reads the
// data that it receives from the files of the others.
//
// A world is a directory next to this library, named by its identifier, which the last rank to leave removes:
//   joined-R: the device of rank R    S-R: what rank R sends in its S-th collective    left-R: rank R has left
// Like the real NCCL, it refuses several ranks on one device unless NCCL_MULTI_RANK_GPU_ENABLE is set (to the value of
// FAKE_NCCL_ALLOWS, if that is set), and aborting only concerns one rank.

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <set>
#include <string>
#include <vector>

enum { OK = 0, INVALID = 4, DUPLICATE = 5, IN_PROGRESS = 7 };
struct Id { char bytes[128]; };
struct Call { int kind; const char* from; char* to; size_t count; int type, op, peer; };
enum { ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, BROADCAST, REDUCE, SEND, RECEIVE };

// The communicator of one rank in a world.
struct Comm { std::string folder; int ranks, rank; long next = 0; bool complete = false, aborted = false; };
// One group of calls, as enqueued; a replay runs it again. `number` is that of the collective that has arrived.
struct Share { Comm* comm; std::vector<Call> calls; long number = -1; };
// A call of a rank, with the data that it sends.
struct Sent { Call call; std::vector<char> data; };

static std::recursive_mutex lock;
static thread_local int depth = 0;
static thread_local std::vector<Call> calls;
static thread_local Comm* comm_of = nullptr;
static thread_local void* stream_of = nullptr;

static std::string place(Comm* c, const std::string& what, int rank) { return c->folder + "/" + what + "-" + std::to_string(rank); }
static bool exists(const std::string& path) { struct stat s; return stat(path.c_str(), &s) == 0; }
static void leave(const std::string& path, const std::vector<char>& data) {
    FILE* f = fopen((path + ".part").c_str(), "wb");
    if (!f || fwrite(data.data(), 1, data.size(), f) != data.size()) { perror(path.c_str()); abort(); }
    fclose(f);
    if (rename((path + ".part").c_str(), path.c_str())) { perror(path.c_str()); abort(); }
}
static std::vector<char> find(const std::string& path) {
    std::ifstream f(path, std::ios::binary);
    return std::vector<char>(std::istreambuf_iterator<char>(f), {});
}

static size_t bytes(int type) {
    switch (type) { case 0: case 1: return 1; case 2: case 3: case 7: return 4; case 6: case 9: return 2; default: return 8; }
}
static float half(uint16_t u) { _Float16 h; memcpy(&h, &u, 2); return h; }
static float brain(uint16_t u) { uint32_t w = (uint32_t)u << 16; float x; memcpy(&x, &w, 4); return x; }
template <class T> static T two(T a, T b, int op) { return op == 0 ? a + b : op == 1 ? a * b : op == 2 ? (a > b ? a : b) : (a < b ? a : b); }
static void combine(char* out, const std::vector<const char*>& in, size_t n, int type, int op) {
    std::vector<char> result(n * bytes(type));
    for (size_t i = 0; i < n; i++) {
        switch (type) {
#define OF(T) { T x = ((const T*)in[0])[i]; for (size_t r = 1; r < in.size(); r++) x = two<T>(x, ((const T*)in[r])[i], op); ((T*)result.data())[i] = x; break; }
        case 1: OF(uint8_t)
        case 2: OF(int32_t)
        case 4: OF(int64_t)
        case 7: OF(float)
        case 8: OF(double)
        case 6: { float x = half(((const uint16_t*)in[0])[i]); for (size_t r = 1; r < in.size(); r++) x = two<float>(x, half(((const uint16_t*)in[r])[i]), op); _Float16 h = (_Float16)x; memcpy(&result[2 * i], &h, 2); break; }
        case 9: { float x = brain(((const uint16_t*)in[0])[i]); for (size_t r = 1; r < in.size(); r++) x = two<float>(x, brain(((const uint16_t*)in[r])[i]), op); uint32_t u; memcpy(&u, &x, 4); uint16_t b = (u + 0x7fff + ((u >> 16) & 1)) >> 16; memcpy(&result[2 * i], &b, 2); break; }
        default: abort();
        }
    }
    memcpy(out, result.data(), result.size());
}

static void publish(Share* s) {
    Comm* c = s->comm;
    std::vector<char> out;
    auto put = [&](const void* p, size_t n) { out.insert(out.end(), (const char*)p, (const char*)p + n); };
    for (const Call& call : s->calls) {
        size_t n = call.count * bytes(call.type);
        if (call.kind == REDUCE_SCATTER) n *= c->ranks;
        if (call.kind == RECEIVE || (call.kind == BROADCAST && call.peer != c->rank)) n = 0;
        put(&call, sizeof call);
        put(&n, sizeof n);
        put(call.from, n);
    }
    leave(place(c, std::to_string(s->number), c->rank), out);
    // A rank that has arrived here has received everything of the collective before the last one.
    if (s->number >= 2) unlink(place(c, std::to_string(s->number - 2), c->rank).c_str());
}
static std::vector<Sent> sent(Comm* c, long number, int rank) {
    std::vector<char> data = find(place(c, std::to_string(number), rank));
    std::vector<Sent> out;
    for (size_t at = 0; at < data.size();) {
        Sent s;
        size_t n;
        memcpy(&s.call, &data[at], sizeof s.call);
        memcpy(&n, &data[at + sizeof s.call], sizeof n);
        at += sizeof s.call + sizeof n;
        s.data.assign(data.begin() + at, data.begin() + at + n);
        at += n;
        out.push_back(std::move(s));
    }
    return out;
}
// The data that this rank receives in one group of calls.
static void perform(Share* s) {
    Comm* comm = s->comm;
    const int me = comm->rank;
    std::vector<std::vector<Sent>> all;
    for (int r = 0; r < comm->ranks; r++) all.push_back(sent(comm, s->number, r));
    std::vector<std::pair<char*, std::vector<char>>> writes;
    std::vector<int> received(comm->ranks, 0);
    for (size_t i = 0; i < s->calls.size(); i++) {
        const Call& c = s->calls[i];
        const size_t size = bytes(c.type);
        auto of = [&](int r) -> const Sent& {
            if (i >= all[r].size()) { fprintf(stderr, "rank %d of a world makes fewer calls\n", r); abort(); }
            const Call& other = all[r][i].call;
            if (other.kind != c.kind || other.type != c.type || other.count != c.count || other.op != c.op) { fprintf(stderr, "ranks %d and %d make other calls\n", me, r); abort(); }
            return all[r][i];
        };
        auto sources = [&](size_t offset) { std::vector<const char*> f; for (int r = 0; r < comm->ranks; r++) f.push_back(of(r).data.data() + offset * size); return f; };
        std::vector<char> out(c.count * size);
        switch (c.kind) {
        case ALL_REDUCE: combine(out.data(), sources(0), c.count, c.type, c.op); writes.push_back({c.to, out}); break;
        case REDUCE_SCATTER: combine(out.data(), sources(me * c.count), c.count, c.type, c.op); writes.push_back({c.to, out}); break;
        case REDUCE: if (me == c.peer) { combine(out.data(), sources(0), c.count, c.type, c.op); writes.push_back({c.to, out}); } break;
        case BROADCAST: writes.push_back({c.to, of(c.peer).data}); break;
        case ALL_GATHER: for (int r = 0; r < comm->ranks; r++) writes.push_back({c.to + r * c.count * size, of(r).data}); break;
        case RECEIVE: {
            int wanted = received[c.peer]++;
            const Sent* found = nullptr;
            for (const Sent& x : all[c.peer]) if (x.call.kind == SEND && x.call.peer == me && wanted-- == 0) found = &x;
            if (!found || found->call.count != c.count) { fprintf(stderr, "rank %d receives what rank %d does not send\n", me, c.peer); abort(); }
            writes.push_back({c.to, found->data});
        }
        }
    }
    for (auto& w : writes) memcpy(w.first, w.second.data(), w.second.size());
}
static bool ready(void* data) {
    Share* s = (Share*)data;
    std::lock_guard<std::recursive_mutex> held(lock);
    if (s->comm->aborted) return true;
    if (s->number < 0) {
        s->number = s->comm->next++;
        publish(s);
    }
    for (int r = 0; r < s->comm->ranks; r++) if (!exists(place(s->comm, std::to_string(s->number), r))) return false;
    return true;
}
static void run(void* data) {
    Share* s = (Share*)data;
    std::lock_guard<std::recursive_mutex> held(lock);
    if (!s->comm->aborted) perform(s);
    s->number = -1;
}

#define API extern "C" __attribute__((visibility("default")))
#define LOCKED std::lock_guard<std::recursive_mutex> held(lock)

API int ncclGetVersion(int* v) { *v = 23007; return OK; }
API const char* ncclGetErrorString(int e) { return e == DUPLICATE ? "Duplicate GPU detected" : "the fake library failed"; }
API int ncclGetUniqueId(Id* id) {
    static int count = 0;
    LOCKED;
    Dl_info here;
    if (!dladdr((void*)&ncclGetUniqueId, &here)) return INVALID;
    const std::string folder = std::string(here.dli_fname).substr(0, std::string(here.dli_fname).rfind('/')) + "/worlds";
    mkdir(folder.c_str(), 0777);
    memset(id, 0, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "%d-%d", getpid(), ++count);
    return mkdir((folder + "/" + id->bytes).c_str(), 0777) ? INVALID : OK;
}
API int ncclCommInitRankConfig(Comm** c, int ranks, Id id, int rank, const size_t* config) {
    LOCKED;
    const unsigned* words = (const unsigned*)(config + 1);
    if (words[0] != 0xcafebeefu || words[2] != 0) return INVALID;
    Dl_info here;
    if (!dladdr((void*)&ncclCommInitRankConfig, &here)) return INVALID;
    const std::string folder = std::string(here.dli_fname).substr(0, std::string(here.dli_fname).rfind('/')) + "/worlds/" + id.bytes;
    static int (*device)() = (int (*)())dlsym(dlopen("libcuda.so", RTLD_NOW), "fake_device");
    *c = new Comm{folder, ranks, rank};
    leave(place(*c, "joined", rank), {(char)device()});
    return IN_PROGRESS;
}
API int ncclCommGetAsyncError(Comm* c, int* e) {
    LOCKED;
    *e = OK;
    if (c->complete) return OK;
    for (int r = 0; r < c->ranks; r++) if (!exists(place(c, "joined", r))) { *e = IN_PROGRESS; return OK; }
    std::set<std::vector<char>> devices;
    for (int r = 0; r < c->ranks; r++) devices.insert(find(place(c, "joined", r)));
    c->complete = true;
    const char *allowed = getenv("NCCL_MULTI_RANK_GPU_ENABLE"), *wanted = getenv("FAKE_NCCL_ALLOWS");
    if ((int)devices.size() < c->ranks && (!allowed || (wanted && strcmp(allowed, wanted)))) *e = DUPLICATE;
    return OK;
}
// The last rank to leave a world removes it.
static void goodbye(Comm* c) {
    leave(place(c, "left", c->rank), {});
    for (int r = 0; r < c->ranks; r++) if (!exists(place(c, "left", r))) return;
    std::error_code ignored;
    std::filesystem::remove_all(c->folder, ignored);
}
// Enqueued operations still refer to it.
API int ncclCommAbort(Comm* c) { LOCKED; c->aborted = true; goodbye(c); return OK; }
API int ncclCommFinalize(Comm*) { return OK; }
API int ncclCommDestroy(Comm* c) { LOCKED; goodbye(c); return OK; }
API int ncclGroupStart() { depth++; return OK; }
static int add(Comm* comm, void* stream, Call c) {
    if (depth == 0) return INVALID;
    comm_of = comm;
    stream_of = stream;
    calls.push_back(c);
    return OK;
}
API int ncclAllReduce(const char* f, char* t, size_t n, int type, int op, Comm* c, void* s) { return add(c, s, {ALL_REDUCE, f, t, n, type, op, 0}); }
API int ncclReduceScatter(const char* f, char* t, size_t n, int type, int op, Comm* c, void* s) { return add(c, s, {REDUCE_SCATTER, f, t, n, type, op, 0}); }
API int ncclAllGather(const char* f, char* t, size_t n, int type, Comm* c, void* s) { return add(c, s, {ALL_GATHER, f, t, n, type, 0, 0}); }
API int ncclBroadcast(const char* f, char* t, size_t n, int type, int root, Comm* c, void* s) { return add(c, s, {BROADCAST, f, t, n, type, 0, root}); }
API int ncclReduce(const char* f, char* t, size_t n, int type, int op, int root, Comm* c, void* s) { return add(c, s, {REDUCE, f, t, n, type, op, root}); }
API int ncclSend(const char* f, size_t n, int type, int peer, Comm* c, void* s) { return add(c, s, {SEND, f, nullptr, n, type, 0, peer}); }
API int ncclRecv(char* t, size_t n, int type, int peer, Comm* c, void* s) { return add(c, s, {RECEIVE, nullptr, t, n, type, 0, peer}); }
API int ncclGroupEnd() {
    if (--depth > 0 || calls.empty()) return OK;
    Share* share = new Share{comm_of, calls};
    calls.clear();
    typedef int (*Enqueue)(void*, void (*)(void*), void*, bool (*)(void*));
    static Enqueue enqueue = (Enqueue)dlsym(dlopen("libcuda.so", RTLD_NOW), "fake_enqueue");
    return enqueue(stream_of, run, share, ready);
}
