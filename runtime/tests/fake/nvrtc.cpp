// NVRTC without CUDA: "compiles" with g++ and the emulator's header to a shared library that the fake driver loads.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <atomic>
#include <string>

struct Program { std::string source, log, binary; };

static std::string read(const std::string& path) {
    std::string text;
    if (FILE* f = fopen(path.c_str(), "rb")) {
        char buffer[1 << 16];
        for (size_t n; (n = fread(buffer, 1, sizeof buffer, f)) > 0;) text.append(buffer, n);
        fclose(f);
    }
    return text;
}

// The kernels of a source: a function that takes its arguments from a list, and their number.
static std::string entries(const std::string& source) {
    std::string text;
    const std::string begin = "extern \"C\" __global__ void __launch_bounds__(";
    for (size_t at = source.find(begin); at != std::string::npos;) {
        const size_t name = source.find(") ", at) + 2, open = source.find('(', name), close = source.find(')', open);
        const std::string kernel = source.substr(name, open - name), params = source.substr(open, close - open);
        const size_t next = source.find(begin, close);
        const std::string body = source.substr(close, next == std::string::npos ? next : next - close);
        const bool waits = body.find("__syncthreads") != std::string::npos || body.find("together<") != std::string::npos ||
                           body.find("__shfl") != std::string::npos || body.find("attention_") != std::string::npos;
        int count = 0;
        std::string args;
        for (size_t p = params.find("i64 a"); p != std::string::npos; p = params.find("i64 a", p + 1))
            args += ", a[" + std::to_string(count++) + "]";
        text += "extern \"C\" void run_" + kernel + "(char* A, const long long* a) { " + kernel + "(A" + args + "); }\n";
        text += "extern \"C\" int params_" + kernel + " = " + std::to_string(count) + ";\n";
        text += "extern \"C\" int cooperative_" + kernel + " = " + std::to_string(waits) + ";\n";
        at = next;
    }
    return text + "extern \"C\" int launch(void (*f)(char*, const long long*), unsigned g, unsigned b, int c, int w, char* A, "
                  "const long long* a) { return run_kernel(f, g, b, c, w, A, a); }\n";
}

#define API extern "C" __attribute__((visibility("default")))

API int nvrtcVersion(int* a, int* b) { *a = *b = 0; return 0; }
API const char* nvrtcGetErrorString(int) { return "the fake compiler failed"; }
API int nvrtcCreateProgram(Program** p, const char* source, const char*, int, const char**, const char**) {
    *p = new Program{source, "", ""};
    return 0;
}
API int nvrtcDestroyProgram(Program** p) { delete *p; return 0; }
API int nvrtcCompileProgram(Program* p, int, const char**) {
    static std::atomic<int> count{0};
    const std::string base = "/tmp/fake-nvrtc-" + std::to_string(getpid()) + "-" + std::to_string(count++);
    const std::string text = read(SHIM) + p->source + entries(p->source);
    FILE* f = fopen((base + ".cpp").c_str(), "wb");
    fwrite(text.data(), 1, text.size(), f);
    fclose(f);
    const std::string command = "g++ -std=c++17 -O1 -w -shared -fPIC -ffp-contract=off -fno-strict-aliasing " FLAGS " -o " +
                                base + ".so " + base + ".cpp 2> " + base + ".log";
    const int code = system(command.c_str());
    p->log = read(base + ".log");
    const std::string binary = read(base + ".so");
    const uint64_t n = binary.size();
    p->binary.assign((const char*)&n, 8);
    p->binary += binary;
    for (const char* ending : {".cpp", ".so", ".log"}) unlink((base + ending).c_str());
    return code == 0 ? 0 : 6;
}
API int nvrtcGetProgramLogSize(Program* p, size_t* n) { *n = p->log.size() + 1; return 0; }
API int nvrtcGetProgramLog(Program* p, char* to) { memcpy(to, p->log.c_str(), p->log.size() + 1); return 0; }
API int nvrtcGetCUBINSize(Program* p, size_t* n) { *n = p->binary.size(); return 0; }
API int nvrtcGetCUBIN(Program* p, char* to) { memcpy(to, p->binary.data(), p->binary.size()); return 0; }
