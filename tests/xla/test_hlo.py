"""What the operations of a program move."""

import jax
import jax.numpy as jnp

from blockjax.xla.hlo import array_bytes, moved_bytes

PROGRAM = """
HloModule jit_f

%fused_computation (param_0: f32[8,4], param_1: u8[8,4]) -> (f32[8], f32[8,4]) {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %param_1 = u8[8,4]{1,0} parameter(1)
  %convert.1 = f32[8,4]{1,0} convert(%param_1)
  ROOT %tuple.9 = (f32[8]{0}, f32[8,4]{1,0}) tuple(%reduce.1, %convert.1)
}

ENTRY %main.1 (a.1: f32[8,4], b.1: u8[8,4]) -> (f32[], f32[8,4]) {
  %a.1 = f32[8,4]{1,0} parameter(0), metadata={op_name="a"}
  %b.1 = u8[8,4]{1,0} parameter(1)
  %constant_1 = f32[] constant(0)
  %fusion = (f32[8]{0}, f32[8,4]{1,0}) fusion(%a.1, %b.1, %a.1), kind=kInput, calls=%fused_computation
  %get-tuple-element.1 = f32[8]{0} get-tuple-element(%fusion), index=0
  %get-tuple-element.2 = f32[8,4]{1,0} get-tuple-element(%fusion), index=1
  %bitcast.1 = f32[2,4]{1,0} bitcast(%get-tuple-element.1)
  %reduce.2 = f32[] reduce(%bitcast.1, %constant_1), dimensions={0,1}, to_apply=%add
  ROOT %tuple.1 = (f32[], f32[8,4]{1,0}) tuple(%reduce.2, %get-tuple-element.2)
}
"""


def test_operands_and_results_are_counted_once():
    fusion = (
        8 * 4 * 4 + 8 * 4 + 8 * 4 + 8 * 4 * 4
    )  # a once, though it is read twice; b; both results
    reduction = 8 * 4 + 4 + 4
    assert moved_bytes(PROGRAM) == fusion + reduction
    assert moved_bytes("HloModule nothing") == 0


def test_bytes_of_arrays():
    assert array_bytes("(f32[8,4]{1,0:T(8,128)}, bf16[2], s8[], pred[3], u4[6], f8e4m3fn[5])") == [
        *(128, 4, 1, 3, 3, 5)
    ]


def test_a_compiled_copy_moves_its_array_twice():
    array = jnp.ones((64, 64))
    compiled = jax.jit(lambda x: x * 2.0).lower(array).compile()
    assert moved_bytes(compiled.as_text()) == 2 * array.nbytes
