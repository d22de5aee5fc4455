import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.backend import CPU_BACKENDS, Backend, parse_backend
from deploy.errors import BackendError


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_cpu_backends_stand_for_themselves(name: str) -> None:
    assert parse_backend(name) == Backend(name)


def test_a_gpu_has_a_precision() -> None:
    assert parse_backend("gpu") == Backend("gpu", fp32=False)
    assert parse_backend("gpu:fp32") == Backend("gpu", fp32=True)


@pytest.mark.parametrize(
    ("text", "library", "options"),
    [
        ("delegate:libx.so", "libx.so", ()),
        ("delegate:/lib/x.so?a=b", "/lib/x.so", (("a", "b"),)),
        ("delegate:/a b/c:d.so?key=value&key2=value2", "/a b/c:d.so", (("key", "value"), ("key2", "value2"))),
        ("delegate:x.so?z=1&a=", "x.so", (("z", "1"), ("a", ""))),
        ("delegate:x.so?a=b=c?d", "x.so", (("a", "b=c?d"),)),
    ],
)
def test_a_delegate_has_a_library_and_options_in_their_order(text: str, library: str, options: tuple) -> None:
    assert parse_backend(text) == Backend("delegate", path=library, options=options)


@pytest.mark.parametrize("text", ["", "CPU", "xnnpack", "cpu ", "gpu:fp16", "gpu:", "npu:0", "delegate", "cuda"])
def test_unknown_names_are_refused_with_those_there_are(text: str) -> None:
    with pytest.raises(BackendError, match="a backend is one of cpu, cpu-builtin, cpu-reference, gpu, gpu:fp32, npu, "):
        parse_backend(text)


@pytest.mark.parametrize("text", ["delegate:", "delegate:?a=b", "delegate:x\0.so", "delegate:x.so?a=\0"])
def test_a_delegate_without_a_library_is_refused(text: str) -> None:
    with pytest.raises(BackendError, match="a delegate is delegate:LIBRARY"):
        parse_backend(text)


@pytest.mark.parametrize("options", ["", "a", "=b", "a=b&", "&a=b", "a=b&&c=d", "a=b&c"])
def test_options_that_are_no_pairs_are_refused(options: str) -> None:
    with pytest.raises(BackendError, match="a delegate's option is key=value"):
        parse_backend(f"delegate:x.so?{options}")


def test_an_option_that_comes_twice_is_refused() -> None:
    with pytest.raises(BackendError, match="'a' stands twice"):
        parse_backend("delegate:x.so?a=1&b=2&a=1")


_TEXT = st.text(st.characters(blacklist_characters="?&=\0", blacklist_categories=("Cs",)), min_size=1, max_size=8)


@given(_TEXT, st.dictionaries(_TEXT, _TEXT, min_size=1, max_size=4))
def test_what_is_written_down_is_read_back(library: str, options: dict[str, str]) -> None:
    text = f"delegate:{library}?" + "&".join(f"{key}={value}" for key, value in options.items())
    assert parse_backend(text) == Backend("delegate", path=library, options=tuple(options.items()))


@given(st.text(max_size=20))
def test_any_other_text_is_an_error_of_one_line(text: str) -> None:
    try:
        parse_backend(f"delegate:{text}")
    except BackendError as error:
        assert len(str(error).splitlines()) == 1
