"""The committed record of the kernels' machine code keeps the limits; and those who read machine code can.

Nothing is compiled here: where the CUDA plugin is installed, `test_cubins.py` compiles.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.aot import cases, machine_code, record, targets
from tests.aot.compiler import Compiled, large_operations
from tests.aot.limits import broken_limits
from tests.kernels.test_expand_conformance import CODECS

RECORD = record.read()


def kept(kernel: str) -> dict[cases.Case, Compiled]:
    return {case: compiled for case, compiled in RECORD.items() if case.kernel == kernel}


def test_the_record_has_every_case() -> None:
    assert list(RECORD) == cases.every()
    named = {(dtype, codec) for dtype, codecs in CODECS.items() for codec in codecs}
    for kernel in cases.PROGRAMS:
        found = {(case.dtype, case.codec) for case in kept(kernel) if case.shape == cases.SQUARE}
        # With escapes a codec without bitmap is not multiplied fused, nor is float32 on tensor cores.
        absent = {each for each in named if "dense-packed" in each[1]} if "expand" not in kernel else set()
        absent |= {each for each in named if each[0] == "float32"} if kernel == "tensor" else set()
        assert named - absent <= found


def test_the_record_is_of_these_kernels() -> None:
    """BUILD.md says how to make it again."""
    assert record.recorded_sources() == record.sources()


@pytest.mark.parametrize("kernel", cases.PROGRAMS)
def test_every_limit_is_kept(kernel: str) -> None:
    broken = [each for case, compiled in kept(kernel).items() for each in broken_limits(case, compiled)]
    assert broken == []


def test_what_breaks_a_limit_is_said() -> None:
    case = cases.Case("expand", cases.SQUARE, "bfloat16", "packed:2", escapes=1000)
    good = RECORD[case]
    (kernel,) = good.kernels
    bad = replace(kernel, spill_bytes=8, target="sm_80", stores={"64": 8}, instructions=15 * 32)
    worse = replace(
        good,
        kernels=(bad,),
        large_operations=("custom-call", "copy"),
        temporary_bytes=2**25,
        output_bytes=2**26,
    )
    assert broken_limits(case, good) == []
    assert [each.removeprefix(f"{case}: ") for each in broken_limits(case, worse)] == [
        "endor_expand spills 8 bytes",
        "endor_expand is for sm_80",
        "stores of {'64': 8} bits",
        "15.0 instructions per element, at most 14",
        "('custom-call', 'copy') of the matrix's size, expected ('custom-call', 'fusion of scatter')",
        "a result of 67,108,864 bytes",
        "33,554,432 bytes of temporaries",
    ]
    assert broken_limits(case, replace(good, kernels=())) == [f"{case}: 0 kernels"]


PTXAS = """ptxas info    : Compiling entry function 'other' for 'sm_90a'
    0 bytes stack frame, 9 bytes spill stores, 9 bytes spill loads
ptxas info    : Used 9 registers, used 0 barriers
ptxas info    : Compiling entry function 'endor_x' for 'sm_90a'
ptxas info    : Function properties for endor_x
    16 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 44 registers, used 0 barriers
"""
CODE = """//--------------------- .text.endor_x        --------------------------
\t.section\t.text.endor_x,"ax",@progbits
endor_x:
.text.endor_x:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.64.CONSTANT R2, desc[UR6][R4.64+0x100] ;
.L_x_2:
        /*0020*/                   LDG.E R3, desc[UR6][R4.64+0x100] ;
        /*0030*/              @!P0 LOP3.LUT R8, R9, 0x3, RZ, 0xc0, !PT ;
        /*0040*/               @P0 BRA `(.L_x_2) ;
        /*0050*/                   NOP ;
        /*0060*/               @P1 BRA `(.L_x_1) ;
        /*0070*/                   STG.E.128 desc[UR6][R2.64], R4 ;
        /*0080*/                   STL [R1], R4 ;
        /*0090*/                   EXIT ;
.L_x_3:
        /*00a0*/                   BRA `(.L_x_3);
        /*00b0*/                   NOP;
//--------------------- .text.other        --------------------------
.text.other:
        /*0000*/                   EXIT ;
"""


def test_machine_code_is_counted() -> None:
    """Padding is not, nor is the jump to itself behind the end; the inner one of two loops is."""
    kernel = machine_code.kernel("endor_x", "sm_90a", verbose=PTXAS, code=CODE)
    assert (kernel.registers, kernel.spill_bytes, kernel.instructions, kernel.loops) == (44, 16, 9, (3,))
    assert kernel.loads == {"64": 1, "32": 1}
    assert kernel.stores == {"128": 1}
    assert kernel.opcodes == {"LDG": 2, "BRA": 2, "LDC": 1, "LOP3": 1, "STG": 1, "STL": 1, "EXIT": 1}
    assert machine_code.kernel("other", "sm_90a", verbose=PTXAS, code=CODE).instructions == 1


HLO = """HloModule jit_expand

%fused_scatter (param_0: u16[64], param_1: u32[9]) -> u16[64] {
  %param_0 = u16[64]{0} parameter(0)
  %iota.1 = u32[1000]{0} iota(), iota_dimension=0
  ROOT %scatter.5 = u16[64]{0} scatter(%param_0, %iota.1), to_apply=%region_0.5
}

ENTRY %main.6 (words: u32[9]) -> bf16[8,8] {
  %words = u32[99]{0} parameter(0)
  %copy.1 = u32[99]{0} copy(%words)
  %small = u32[9]{0} slice(%words), slice={[0:9]}
  %pallas_call.1 = u16[64]{0} custom-call(%copy.1), custom_call_target="__gpu$xla.gpu.triton"
  %input_scatter_fusion = u16[64]{0} fusion(%pallas_call.1, %small), kind=kInput, calls=%fused_scatter
  ROOT %bitcast.8.0 = bf16[8,8]{1,0} bitcast(%input_scatter_fusion)
}
"""


def test_large_operations_of_a_compiled_program_are_seen() -> None:
    assert large_operations(HLO, 64) == ["copy", "custom-call", "fusion of scatter"]
    assert large_operations(HLO, 10) == ["copy", "custom-call", "fusion of scatter"]
    assert large_operations(HLO, 100) == []


def test_a_device_is_described_by_its_name_and_compute_capability() -> None:
    ours = targets.description(targets.H200)
    for capability, name in targets.DEVICES.items():
        major, minor = capability.split(".")
        text = targets.description(capability)
        assert f"cuda_compute_capability {{ major: {major} minor: {minor} }}" in text
        assert f'device_description_str: "{name}"' in text
        assert len(text.splitlines()) == len(ours.splitlines())
