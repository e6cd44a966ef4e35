// Tried (docs/kernels.md, "What was tried for a GPU"), assembled and counted, never run: one row of x times a bfloat16
// packed:2 matrix; each lane walks the stored fields of one word of the bitmap, x lies in shared memory by (bit, word).
//   nvcc -O3 -arch=sm_90a -DUNROLL=8 -DMASK -cubin -o walk.cubin walk_stored_fields.cu && nvdisasm -c walk.cubin
#include <cstdint>
#ifndef B
#define B 10
#endif
#ifndef UNROLL
#define UNROLL 8
#endif
__device__ __forceinline__ uint32_t fun(uint32_t lo, uint32_t hi, uint32_t s){return __funnelshift_r(lo,hi,s);}
extern "C" __global__ void walk(const uint32_t* __restrict__ part, const float* __restrict__ x, float* __restrict__ out,
   uint32_t count, uint32_t offsets, uint32_t bitmap, uint32_t bases, uint32_t segments, uint32_t in_row, uint32_t rows_total, int rows){
  __shared__ float xs[33*32];
  uint32_t lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  uint32_t seg = blockIdx.x % segments;
  for(int i=threadIdx.x;i<1024;i+=blockDim.x) xs[i]=x[seg*1024+i];
  if(threadIdx.x<32) xs[1024+threadIdx.x]=0;
  __syncthreads();
  uint32_t row0 = (blockIdx.x/segments)*4*rows + warp*rows;
  for(int r=0;r<rows;r++){
    uint32_t row=min(row0+r,rows_total-1);
    uint32_t w=__brev(part[bitmap+row*in_row+seg*32+lane]);
    uint32_t c=__popc(w), s=c;
    #pragma unroll
    for(int d=1;d<32;d*=2){uint32_t t=__shfl_up_sync(~0u,s,d); if(lane>=d) s+=t;}
    uint32_t pos=part[offsets+row*segments+seg]+(s-c)*B;
    uint32_t base=((part[bases+((row*segments+seg)>>2)]>>(((row*segments+seg)&3)*8))&255)<<23;
    uint32_t most=__reduce_max_sync(~0u,c);
    float total=0; const float* mine=xs+lane;
    #pragma unroll 1
    for(uint32_t k=0;k<most;k+=UNROLL){
      constexpr int N=(UNROLL*B+31)/32;
      uint32_t first=min(pos>>5,count-N-1);
      uint32_t h[N+1],v[N+1];
      #pragma unroll
      for(int i=0;i<=N;i++)h[i]=part[first+i];
      #pragma unroll
      for(int i=0;i<N;i++)v[i]=fun(h[i],h[i+1],pos&31);
      v[N]=0;
      #pragma unroll
      for(int j=0;j<UNROLL;j++){
        int at=j*B+B-32; // shift so that the field's sign is bit 31
        uint32_t t = at<0 ? v[0]<<(-at) : fun(v[at/32],v[at/32+1],at%32);
        uint32_t e = (uint32_t)((int32_t)t >> (16-B)); // magnitude B-1 bits at 16..16+B-2, sign extended
        e = (e & (0x80000000u | (((1u<<(B-1))-1)<<16))) + base;
        uint32_t sh; asm("bfind.u32 %0,%1;":"=r"(sh):"r"(w));
        float xv=*(const float*)((const char*)mine + sh*128);
        float f=__uint_as_float(e);
#ifdef MASK
        if(w) total=fmaf(f,xv,total);
#else
        total=fmaf(f,xv,total);
#endif
        w &= ~(1u<<sh);
      }
      pos+=UNROLL*B;
    }
    #pragma unroll
    for(int d=16;d;d/=2) total+=__shfl_xor_sync(~0u,total,d);
    if(lane==0) out[seg*rows_total+row0+r]=total;
  }
}
