"""Tucker-2 of kernels: exact where it can be, as good as tensorly's own, and better in the output with moments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.activations import PatchMoments
from toolchain.tucker_factors import Factors, factorize, unfold


def _kernel(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _of_rank(seed: int, shape: tuple[int, int, int, int], ranks: tuple[int, int]) -> np.ndarray:
    """A kernel of that Tucker rank."""
    first, core = _kernel(seed, shape[2], ranks[0]), _kernel(seed + 1, *shape[:2], *ranks)
    return first @ core @ _kernel(seed + 2, ranks[1], shape[3])


def _patches(seed: int, rows: int, taps: int, cin: int) -> np.ndarray:
    """Patches (rows, taps*cin) whose taps and channels correlate, with means far from 0, as behind a LeakyReLU: few
    hidden causes, each with its own size."""
    random = np.random.default_rng(seed)
    causes = random.normal(size=(rows, 6)) * 3.0 ** -np.arange(6)
    of_channels, of_taps = random.normal(size=(6, cin)), random.normal(1, 0.3, size=(taps, 6))
    pictures = np.einsum("nk,tk,kc->ntc", causes, of_taps, of_channels) + 0.1 * random.normal(size=(rows, taps, cin))
    pictures += random.normal(size=cin)
    return np.maximum(pictures, 0.1 * pictures).reshape(rows, -1)


def _moments(patches: np.ndarray) -> PatchMoments:
    second = (patches.T @ patches / len(patches)).astype(np.float32)
    return PatchMoments(patches.mean(axis=0), second, len(patches))


def _output_error(kernel: np.ndarray, factors: Factors, patches: np.ndarray) -> float:
    """Relative error of the layer's output on the patches, with the bias that makes up for the lost mean."""
    whole = patches @ kernel.reshape(patches.shape[1], -1).astype(np.float64)
    changed = patches @ factors.kernel.reshape(patches.shape[1], -1)
    if factors.lost_mean is not None:
        changed = changed + factors.lost_mean
    return float(np.linalg.norm(whole - changed) / np.linalg.norm(whole - whole.mean(axis=0)))


def _tensorly_error(kernel: np.ndarray, ranks: tuple[int, int]) -> float:
    """Relative error of tensorly's own decomposition, converged."""
    from tensorly.decomposition import partial_tucker

    # tensorly's own tolerance, 1e-4, ends before it has converged on noise: the ratio of 1.005 is ours to keep.
    _, errors = partial_tucker(kernel.astype(np.float64), rank=ranks, modes=[2, 3], n_iter_max=100, tol=1e-5)
    return float(errors[-1])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_full_rank_changes_nothing(seed: int, kh: int, kw: int, cin: int, cout: int, weighted: bool) -> None:
    kernel = _kernel(seed, kh, kw, cin, cout)
    moments = _moments(_patches(seed, 50, kh * kw, cin)) if weighted else None
    factors = factorize(unfold(kernel, moments), (cin, cout))
    assert (factors.first.shape, factors.core.shape, factors.last.shape) == (
        (cin, cin),
        (kh, kw, cin, cout),
        (cout, cout),
    )
    # float64 throughout; the weighted one solves equations of condition 1e5 at most (LEAST_RIDGE).
    np.testing.assert_allclose(factors.kernel, kernel, atol=1e-9)
    # An error from squares is exact to the root of a rounding.
    assert factors.error < 1e-7


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("kh", "kw"), [(3, 3), (1, 3), (1, 1)])
def test_a_kernel_that_has_the_rank_is_recovered(kh: int, kw: int, weighted: bool) -> None:
    kernel = _of_rank(3, (kh, kw, 12, 16), (4, 5) if kh * kw > 1 else (4, 4))
    moments = _moments(_patches(0, 400, kh * kw, 12)) if weighted else None
    factors = factorize(unfold(kernel, moments), (4, 5))
    # The kernel is float32 and has its rank to some roundings of its largest entries, 6e-8 * 30; tensorly works in
    # float32 too.
    np.testing.assert_allclose(factors.kernel, kernel, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "ranks"),
    [((3, 3, 48, 64), (9, 12)), ((3, 3, 48, 64), (30, 20)), ((5, 1, 32, 24), (8, 6)), ((1, 1, 64, 48), (16, 16))],
)
@pytest.mark.parametrize("decay", [False, True])
def test_the_error_is_that_of_tensorlys_own(shape: tuple[int, ...], ranks: tuple[int, int], decay: bool) -> None:
    kernel = _kernel(0, *shape)
    if decay:  # as trained kernels have it; noise alone is the hardest
        kernel = kernel * (0.9 ** np.arange(shape[2]))[:, None].astype(np.float32)
    factors = factorize(unfold(kernel, None), ranks)
    assert factors.error <= 1.005 * _tensorly_error(kernel, ranks)
    actual = np.linalg.norm(factors.kernel - kernel) / np.linalg.norm(kernel)
    assert factors.error == pytest.approx(actual, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "ranks"), [((3, 3, 336, 672), (67, 134)), ((3, 3, 120, 336), (24, 67))])
def test_the_error_of_the_reference_networks_layers(shape: tuple[int, ...], ranks: tuple[int, int]) -> None:
    kernel = _kernel(0, *shape)
    assert factorize(unfold(kernel, None), ranks).error <= 1.005 * _tensorly_error(kernel, ranks)


@pytest.mark.parametrize("ranks", [(1, 20), (12, 1), (2, 20), (12, 16)])
@pytest.mark.parametrize("weighted", [False, True])
def test_ranks_of_which_one_is_more_than_the_other_can_use(ranks: tuple[int, int], weighted: bool) -> None:
    kernel = _kernel(1, 2, 2, 12, 20)
    moments = _moments(_patches(0, 200, 4, 12)) if weighted else None
    factors = factorize(unfold(kernel, moments), ranks)
    assert factors.first.shape == (12, ranks[0])
    assert factors.last.shape == (20, ranks[1])
    np.testing.assert_allclose(factors.first.T @ factors.first, np.eye(ranks[0]), atol=1e-9)
    np.testing.assert_allclose(factors.last.T @ factors.last, np.eye(ranks[1]), atol=1e-9)
    assert 0 < factors.error < 1


def test_signs_do_not_depend_on_the_eigensolver() -> None:
    factors = factorize(unfold(_kernel(2, 3, 3, 10, 12), _moments(_patches(1, 300, 9, 10))), (4, 5))
    for vectors in (factors.first, factors.last):
        assert (vectors[np.argmax(np.abs(vectors), axis=0), np.arange(vectors.shape[1])] > 0).all()


def test_tensorlys_backend_stays() -> None:
    import tensorly

    before = tensorly.get_backend()
    factorize(unfold(_kernel(0, 3, 3, 8, 8), None), (3, 3))
    assert tensorly.get_backend() == before


@pytest.mark.parametrize("weighted", [False, True])
def test_a_kernel_of_zeros_or_tiny_numbers(weighted: bool) -> None:
    moments = _moments(_patches(0, 100, 9, 8)) if weighted else None
    nothing = factorize(unfold(np.zeros((3, 3, 8, 6), np.float32), moments), (2, 3))
    assert not nothing.kernel.any() and nothing.error == 0
    kernel = _kernel(0, 3, 3, 8, 6)
    usual = factorize(unfold(kernel, moments), (2, 3)).error
    # A power of two changes no digit; the sixth is far below where a float32's square is 0.
    assert factorize(unfold(kernel * np.float32(2.0**-100), moments), (2, 3)).error == pytest.approx(usual, rel=1e-6)


@pytest.mark.parametrize("ranks", [(3, 4), (6, 8), (8, 3)])
@pytest.mark.parametrize("taps", [1, 3])
def test_weighted_loses_less_of_the_output(ranks: tuple[int, int], taps: int) -> None:
    kernel = _kernel(5, taps, taps, 16, 20)
    patches, other = np.split(_patches(7, 8000, taps**2, 16), 2)  # of the same causes
    weighted = factorize(unfold(kernel, _moments(patches)), ranks)
    plain = factorize(unfold(kernel, None), ranks)
    by_kernel = _output_error(kernel, plain, patches - patches.mean(axis=0))
    assert _output_error(kernel, weighted, patches) < 0.7 * by_kernel
    assert _output_error(kernel, weighted, other) < 0.7 * by_kernel
    # The report's error is the measured one. Moments come in float32.
    assert weighted.error == pytest.approx(_output_error(kernel, weighted, patches), rel=1e-3)


def test_a_bias_makes_up_for_the_lost_mean() -> None:
    kernel, patches = _kernel(5, 3, 3, 16, 20), _patches(8, 2000, 9, 16)
    factors = factorize(unfold(kernel, _moments(patches)), (3, 4))
    assert factors.lost_mean is not None
    lost = patches @ (kernel - factors.kernel).reshape(-1, 20)
    np.testing.assert_allclose(lost.mean(axis=0), factors.lost_mean, atol=1e-9)


@pytest.mark.parametrize("rows", [1, 2, 5, 20, 100])
def test_fewer_patches_than_their_entries_do_not_lead_astray(rows: int) -> None:
    # Of 9 * 16 = 144 entries. A covariance of so few knows nothing of most directions, and would give them away.
    kernel, ranks = _kernel(6, 3, 3, 16, 20), (6, 8)
    weighted = factorize(unfold(kernel, _moments(_patches(9, rows, 9, 16))), ranks)
    assert np.isfinite(weighted.kernel).all() and np.isfinite(weighted.error)
    plain = factorize(unfold(kernel, None), ranks)
    # Never far from the best kernel of that rank.
    assert np.linalg.norm(weighted.kernel - kernel) / np.linalg.norm(kernel) < 1.5 * plain.error


@pytest.mark.parametrize("value", [0.0, 3.0, 1e6])
def test_inputs_that_never_change_are_no_statistics(value: float) -> None:
    kernel, patches = _kernel(6, 3, 3, 8, 10), np.full((50, 72), value)
    factors = factorize(unfold(kernel, _moments(patches)), (3, 4))
    plain = factorize(unfold(kernel, None), (3, 4))
    assert factors.error == 0  # the output never changes either
    assert factors.lost_mean is not None
    lost = np.linalg.norm(factors.kernel - kernel) / np.linalg.norm(kernel)
    assert lost < 1.01 * plain.error  # the two ways of iteration end near each other
    np.testing.assert_allclose(patches[0] @ (kernel - factors.kernel).reshape(72, 10), factors.lost_mean, atol=1e-6)


def test_dead_channels_are_given_away_first() -> None:
    patches = _patches(3, 2000, 9, 12)
    patches.reshape(-1, 9, 12)[:, :, 4:] = 0
    factors = factorize(unfold(_kernel(4, 3, 3, 12, 10), _moments(patches)), (4, 10))
    # Four live channels need four ranks. Of the live ones little is lost, for the sake of dead ones that might come to
    # life: their share in the covariance is that of shrinking, some percent.
    plain = factorize(unfold(_kernel(4, 3, 3, 12, 10), None), (4, 10))
    assert factors.error < 0.02 < 0.05 * _output_error(_kernel(4, 3, 3, 12, 10), plain, patches - patches.mean(axis=0))
