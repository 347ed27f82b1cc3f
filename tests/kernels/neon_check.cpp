// The NEON kernels as a server on stdin and stdout, so that the tests of kernels/cpu.py reach them through qemu.
//
// A message is int64 numbers: operation, how many arguments, the arguments (float32 ones by their bits), how many blobs, and
// of each blob its size, whether it comes back, and its bytes. The answer is one int64, then the blobs that come back. Each
// blob lies between guards that must not change: a kernel that writes beside its output ends the server.
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "packed.h"
#include "threads.h"

using namespace coterie;

namespace {

constexpr size_t GUARD = 64;

void read_all(void* p, size_t n) {
  if (n && std::fread(p, 1, n, stdin) != n) std::exit(0);
}

int64_t read_number() {
  int64_t x;
  read_all(&x, 8);
  return x;
}

struct Blob {
  std::vector<uint8_t> bytes;
  size_t size;
  bool comes_back;
  uint8_t* data() { return size ? bytes.data() + GUARD : nullptr; }
};

struct Message {
  int64_t operation;
  std::vector<int64_t> arguments;
  std::vector<Blob> blobs;
  size_t next_argument = 0, next_blob = 0;

  Message() : operation(read_number()), arguments(read_number()) {
    read_all(arguments.data(), arguments.size() * 8);
    blobs.resize(read_number());
    for (Blob& b : blobs) {
      b.size = read_number(), b.comes_back = read_number() != 0;
      b.bytes.assign(b.size + 2 * GUARD, 0xA5);
      read_all(b.bytes.data() + GUARD, b.size);
    }
  }

  int64_t number() { return arguments[next_argument++]; }
  float real() { return std::bit_cast<float>((int32_t)number()); }
  Type type() { return (Type)number(); }
  uint8_t* blob() { return blobs[next_blob++].data(); }
  Matrix matrix() {
    Matrix m;
    m.layout = (Layout)number();
    m.format.bits = (int)number(), m.format.unit = (int)number(), m.format.group_units = (int)number();
    m.format.scales = (Scales)number();
    m.N = number(), m.K = number(), m.half = number(), m.head_rows = number();
    m.data = blob(), m.up = blob();
    return m;
  }

  void answer(int64_t result) {
    std::fwrite(&result, 8, 1, stdout);
    for (Blob& b : blobs) {
      for (size_t i = 0; i < GUARD; i++)
        if (b.bytes[i] != 0xA5 || b.bytes[GUARD + b.size + i] != 0xA5) std::abort();
      if (b.comes_back) std::fwrite(b.bytes.data() + GUARD, 1, b.size, stdout);
    }
    std::fflush(stdout);
  }
};

}  // namespace

// A call's fields are read one statement after the other, in the order in which the test sends them.
int main() {
  auto pool = std::make_unique<Pool>(1);
  for (;;) {
    Message m;
    int64_t result = 0;
    switch (m.operation) {
      case 0: pool = std::make_unique<Pool>((int)m.number()); break;
      case 1: {
        LinearCall c{};
        c.x_type = m.type(), c.T = m.number(), c.x_stride = m.number();
        c.norm.type = m.type(), c.norm.eps = m.real(), c.out_type = m.type(), c.out_stride = m.number();
        c.n_matrices = (int)m.number();
        c.x = m.blob(), c.norm.weight = m.blob(), c.out = m.blob();
        std::vector<Matrix> matrices;
        for (int i = 0; i < c.n_matrices; i++) matrices.push_back(m.matrix());
        c.matrices = matrices.data();
        kernels_neon.linear(*pool, c);
        break;
      }
      case 2: {
        ExpertsCall c{};
        c.type = m.type(), c.T = m.number(), c.D = m.number(), c.F = m.number(), c.S = m.number(), c.E = m.number();
        c.x = m.blob(), c.ids = (int32_t*)m.blob(), c.weights = (float*)m.blob(), c.out = m.blob();
        std::vector<Matrix> gate_up, down;
        for (int64_t i = 0; i < c.E; i++) gate_up.push_back(m.matrix()), down.push_back(m.matrix());
        c.gate_up = gate_up.data(), c.down = down.data();
        kernels_neon.experts(*pool, c);
        break;
      }
      case 3: {
        AttentionCall c{};
        c.type = m.type(), c.T = m.number(), c.H = m.number(), c.G = m.number(), c.P = m.number();
        c.cache_type = m.type(), c.table_stride = m.number(), c.B = m.number(), c.window = m.number(), c.scale = m.real();
        c.qkv = m.blob(), c.cos = (float*)m.blob(), c.sin = (float*)m.blob(), c.pages.k = m.blob(), c.pages.v = m.blob();
        c.pages.k_scales = (float*)m.blob(), c.pages.v_scales = (float*)m.blob(), c.tables = (int32_t*)m.blob();
        c.sequences = (int64_t*)m.blob(), c.out = m.blob();
        kernels_neon.attention(*pool, c);
        break;
      }
      case 4: {
        RouteCall c{};
        c.type = m.type(), c.T = m.number(), c.D = m.number(), c.E = m.number(), c.S = m.number(), c.K = m.number();
        c.renormalise = m.number() != 0;
        c.x = m.blob(), c.weight = (float*)m.blob(), c.edits.of_row = (int32_t*)m.blob(), c.edits.stride = c.E;
        c.edits.bias = (float*)m.blob(), c.edits.top_k = (int32_t*)m.blob(), c.ids = (int32_t*)m.blob(), c.weights = (float*)m.blob();
        c.logits = (float*)m.blob();
        kernels_neon.route(*pool, c);
        break;
      }
      case 5: {
        NormCall c{};
        c.type = m.type(), c.T = m.number(), c.D = m.number(), c.norm.type = m.type(), c.norm.eps = m.real();
        c.x = m.blob(), c.norm.weight = m.blob(), c.out = m.blob();
        kernels_neon.norm(*pool, c);
        break;
      }
      case 6: {
        AddCall c{};
        c.type = m.type(), c.n = m.number();
        c.a = m.blob(), c.b = m.blob(), c.out = m.blob();
        kernels_neon.add(*pool, c);
        break;
      }
      case 7: {
        EmbedCall c{};
        c.T = m.number(), c.type = m.type();
        c.ids = (int64_t*)m.blob(), c.out = m.blob();
        c.table = m.matrix();
        kernels_neon.embed(*pool, c);
        break;
      }
      case 8: {
        uint8_t* out = m.blob();
        result = repack(*pool, m.matrix(), out);
        break;
      }
      case 9: {
        SwigluCall c{};
        c.type = m.type(), c.T = m.number(), c.F = m.number();
        c.x = m.blob(), c.out = m.blob();
        kernels_neon.swiglu(*pool, c);
        break;
      }
      case 10: {
        ArgmaxCall c{};
        c.type = m.type(), c.T = m.number(), c.V = m.number();
        c.x = m.blob(), c.ids = (int64_t*)m.blob(), c.values = (float*)m.blob();
        kernels_neon.argmax(*pool, c);
        break;
      }
      default: std::abort();
    }
    m.answer(result);
  }
}
