// The CUDA kernels of pack_selected for one storage type of x (SCALAR) as a CPU library: C names for the host functions of the GPU
// build, which run its kernels in the emulator. They return null or what went wrong.
#include "cuda_emulator.h"
#include "gather/cuda/gather.h"
#include "common/storage.cuh"

using namespace seq2exp;

extern "C" {

// Where each field of GpuSelect begins, and where it ends; in the order of the Python side.
const int64_t* select_layout() {
#define AT(field) int64_t(offsetof(GpuSelect, field))
  static const int64_t offsets[] = {AT(mask), AT(batch), AT(length), AT(tiles), AT(offsets), AT(indices), AT(cu_seqlens), AT(size),
                                    AT(padded), sizeof(GpuSelect)};
  return offsets;
#undef AT
}

const int64_t* gather_layout() {
#define AT(field) int64_t(offsetof(GpuGather, field))
  static const int64_t offsets[] = {AT(total), AT(bases), AT(dim), AT(indices), AT(vectors), AT(mask), AT(dense), AT(packed), AT(out),
                                    AT(grad_mask), sizeof(GpuGather)};
  return offsets;
#undef AT
}

int64_t select_tile() { return kSelectTile; }

const char* select_count(const GpuSelect* a) {
  return emulator::message_of([=] { gpu_select_count(*a, nullptr); });
}

const char* select_place(const GpuSelect* a) {
  return emulator::message_of([=] { gpu_select_place(*a, nullptr); });
}

const char* pack(const GpuGather* a) {
  return emulator::message_of([=] { gpu_pack<SCALAR>(*a, nullptr); });
}

const char* unpack(const GpuGather* a) {
  return emulator::message_of([=] { gpu_unpack<SCALAR>(*a, nullptr); });
}

}  // extern "C"
