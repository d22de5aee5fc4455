"""The runtime's own words, as it wrote them on machines with and without a GPU."""

from deploy.delegated import Left
from deploy.gpu_refusal import last_line, refusal, refused_nodes

LIST = """INFO: [compiled_model.cc:829] Flatbuffer model initialized directly from incoming litert model.
ERROR: Following operations are not supported by GPU delegate:
RESHAPE: Tensor dimensions must be less than 5. m
RESHAPE: Tensor dimensions must be less than 5. m2
TILE: Tensor dimensions must be less than 5. m
CUSTOM Odd: Odd
1 operations will run on the GPU, and the remaining 4 operations will run on the CPU.
I0000 00:00:1796027615.604411    1543 delegate_kernel.cc:984] Initializing WebGPU-based API from graph.
"""
RAISED = RuntimeError(
    "ERROR: [./litert/cc/litert_compiled_model.h:1961]\n└ Some ops are not accelerated. Add kLiteRtHwAcceleratorCpu to "
    "the compilation accelerator set to allow using the CPU to run those."
)
NO_DRIVER = """Warning: vkCreateInstance: Found no drivers!
Warning: vkCreateInstance failed with VK_ERROR_INCOMPATIBLE_DRIVER
ERROR: [delegate_webgpu.cc:359] Failed to initialize WebGPU environment: INTERNAL: No adapters found
"""
NO_LOADER = """Warning: Couldn't load Vulkan: libvulkan.so.1: cannot open shared object file: No such file or directory
ERROR: [delegate_webgpu.cc:359] Failed to initialize WebGPU environment: INTERNAL: No adapters found
"""
MISMATCH = (
    "W0000 00:00:1796027622.867820    1712 gpu_model_builder.cc:3901] Shape mismatch in GpuModelBuilder::"
    "UpdateOutputTensors(output of convolution1x1(conv_generic)). Requested shape:{bhwdc, {1, 2, 4, 1, 4}} vs "
    "reference shape: {bhwdc, {1, 32, 64, 1, 4}}\n"
)


def text(said: str, failed: Exception | None = RAISED) -> str:
    error = refusal("gpu", said, failed, 5)
    assert error is not None and len(str(error).splitlines()) == 1
    return str(error)


def test_all_is_well_without_a_failure() -> None:
    assert refusal("gpu", "INFO: much talk\n", None, 5) is None


def test_refused_nodes_are_counted_by_type_and_reason() -> None:
    assert refused_nodes(LIST) == (
        Left("RESHAPE", 2, "Tensor dimensions must be less than 5"),
        Left("TILE", 1, "Tensor dimensions must be less than 5"),
        Left("Odd", 1),
    )
    assert refused_nodes("ERROR: another\n") == ()
    said = text(LIST)
    assert "refuses 4 of 5 nodes: RESHAPE x2 (Tensor dimensions must be less than 5), TILE (" in said
    assert said.endswith("Odd; convert the model without such nodes, or choose cpu")


def test_types_that_a_gpu_lacks_are_named() -> None:
    said = "ERROR: Following operations are not supported by GPU delegate:\n"
    said += "ADD: Tensor type(INT64) is not supported. o\n"
    assert "convert the model without int64 tensors" in text(said + "No operations will run on the GPU, and all 1 …\n")


def test_post_processing_is_named() -> None:
    name = "TFLite_Detection_PostProcess"
    said = f"ERROR: Following operations are not supported by GPU delegate:\nCUSTOM {name}: {name}\n"
    assert f"give the file without {name}" in text(said + "1 operations will run on the GPU\n")


def test_loader_and_driver_are_told_apart() -> None:
    assert "needs the Vulkan loader" in text(NO_LOADER)
    assert "none was found (vkCreateInstance: Found no drivers!)" in text(NO_DRIVER)
    assert "none was found (No adapters found)" in text(NO_DRIVER.splitlines()[2])


def test_shapes_that_are_computed_are_told_or_guessed() -> None:
    failed = RuntimeError("ERROR: [x.h:1]\n└ Failed to modify graph with delegate")
    said = "WARNING: Attempting to use a delegate that only supports static-sized tensors with a graph that has "
    said += "dynamic-sized tensors (tensor#-1 is a dynamic-sized tensor).\n"
    assert "needs fixed shapes" in text(said, failed)
    assert "tells no reason" in text("", failed)


def test_nodes_of_a_wrong_shape_are_an_error_though_they_compiled() -> None:
    assert "would compute wrong values" in text(MISMATCH * 4, None)
    assert "(convolution1x1 x4)" in text(MISMATCH * 4, None)
    assert "(convolution1x1)" in text(MISMATCH, None)


def test_another_failure_is_told_in_the_runtimes_last_words() -> None:
    assert "(Some ops are not accelerated. Add" in text("INFO: nothing\n")
    assert "(out of memory)" in text("ERROR: first\nERROR: [a.cc:7] out of memory\nINFO: end\n")
    assert last_line("") == "the runtime gave no reason"
