"""The algebra of Tucker-2: a convolution's kernel as a 1x1, a small k x k and another 1x1 kernel.

A kernel W (kh, kw, cin, cout), or W_t (cin, cout) for each of its T = kh*kw taps t, becomes
    W'_t = A G_t B^T      A (cin, r_in) first, G_t (r_in, r_out) core, B (cout, r_out) last
(Tucker 1966; Kim et al. 2016, "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
Applications", section 3.1). It is a convolution again because all of it is linear: x -> x A at every place, then the
core's taps, then B^T.

**Plain**: least sum_t |W_t - W'_t|^2. A and B start as the leading eigenvectors of the unfoldings' Gram matrices
sum_t W_t W_t^T and sum_t W_t^T W_t (HOSVD), then sweeps of tensorly's partial_tucker refine them (HOOI, De Lathauwer
et al. 2000).

**Weighted** by what the layer reads: least mean square error of its *output*. With p (T*cin,) a centred input patch,
C = E[p p^T] and W as (T*cin, cout) that error is tr (W - W')^T C (W - W').
  1. First from the channels' covariance S (cin, cin), the mean of C's T diagonal blocks: as if taps were uncorrelated
     the error is sum_t |S^1/2 (W_t - W'_t)|^2, so A = S^-1/2 U with U the leading eigenvectors of
     sum_t S^1/2 W_t W_t^T S^1/2.
  2. Given A the rest is exact, a reduced-rank regression (Izenman 1975) of the output on z = patch after A. With
     C_z = A'^T C A', A' = I_T (x) A, and M = C_z^-1 A'^T C W: B are the leading eigenvectors of M^T C_z M, G = M B.
  3. Given G and B the error is quadratic in A: sum_tu C_tu A G_u G_t^T = sum_t [C W B]_t G_t^T, solved by a few steps
     of conjugate gradients; then 2. again. It never gets worse.
What is lost of the mean, (W - W')^T E[p], is a constant: a bias makes up for it.

C is measured on n patches, fewer perhaps than its T*cin rows, and what they don't show must not be given away: C is
shrunk towards a multiple of the identity by the oracle approximating estimator (Chen, Wiesel, Eldar, Hero 2010,
"Shrinkage Algorithms for MMSE Covariance Estimation", equation 23), (1 - q) C + q tr(C)/(T*cin) I. The estimator
counts independent samples. Patches of a picture are not: every place of the input is in T of them, so they count as
n / T. (Of 18 layers of two detectors, on pictures of which C knew nothing, that cost at most 0.3 % of the error against
n and won up to 10 %.) With few patches the weighted decomposition becomes the plain one.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from toolchain.activations import PatchMoments

#: Sweeps of tensorly's iteration, from the Gram matrices' eigenvectors. The worst kernel, pure noise, comes to 1.0015
#: of where more end.
SWEEPS = 3
#: Weighted: how often first is improved, and steps of conjugate gradients each time. On two detectors that took 0.5 to
#: 3 % off the error, on pictures that were not used; three times 8 steps took another 0.3 % and five times as long.
ROUNDS, STEPS = 1, 4
#: Least multiple of the identity in a covariance, of the mean square of what is read. Second moments come in float32,
#: rounded by 6e-8 of themselves; a matrix of d independent such errors has eigenvalues up to 2 sqrt(d) of them, 1e-5 at
#: d = 5760, and rounding in their sums makes it a few times more.
LEAST_RIDGE = 3e-5
#: Largest share of the identity where there is a covariance at all, so that what was measured can be had from it.
MOST_SHRINKAGE = 0.999


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """A kernel's three factors, float64, and what they lose."""

    #: (cin, r_in).
    first: np.ndarray
    #: (kh, kw, r_in, r_out).
    core: np.ndarray
    #: (cout, r_out), orthonormal columns.
    last: np.ndarray
    #: Relative error, Frobenius: of the output about its mean where it is weighted, else of the kernel. 0 for a layer
    #: that is constant, or zero.
    error: float
    #: (cout,): mean of the output that is lost without a bias; None where it is not weighted.
    lost_mean: np.ndarray | None

    @functools.cached_property
    def kernel(self) -> np.ndarray:
        """(kh, kw, cin, cout): the one kernel that does what the three do."""
        kernel: np.ndarray = self.first @ self.core @ self.last.T
        return kernel


@dataclasses.dataclass(frozen=True, eq=False)
class Weighting:
    """Second moments of what a layer reads, ready for its kernel; float64."""

    #: (T*cin,): the mean patch.
    mean: np.ndarray
    #: (T*cin, T*cin): covariance of patches, shrunk.
    covariance: np.ndarray
    #: (T*cin, cout): covariance times kernel.
    product: np.ndarray
    #: (cin, cin): square root of the channels' covariance, and its inverse.
    root: np.ndarray
    inverse_root: np.ndarray
    #: Share of the identity in the covariance, below 1, or 1 where what is read does not vary; and the multiple of it.
    share: float
    ridge: float

    def measured_square(self, kernel: np.ndarray) -> float:
        """Mean square, about its mean, of the output of a kernel (T*cin, cout) over the patches as they were measured.
        """
        if self.share == 1:
            return 0.0
        whole = float(np.vdot(kernel, self.covariance @ kernel))
        return max(0.0, whole - self.ridge * float(np.vdot(kernel, kernel))) / (1 - self.share)


@dataclasses.dataclass(frozen=True, eq=False)
class Unfoldings:
    """A kernel and the eigenvectors of its two unfoldings' Gram matrices, weighted or plain; float64, descending."""

    #: (kh, kw, cin, cout).
    kernel: np.ndarray
    #: (cin,) and (cout,): squared singular values.
    of_input: np.ndarray
    of_output: np.ndarray
    #: (cin, cin) and (cout, cout), a column each.
    input_vectors: np.ndarray
    output_vectors: np.ndarray
    weighting: Weighting | None


def unfold(kernel: np.ndarray, moments: PatchMoments | None) -> Unfoldings:
    """What ranks and factors are made of; kernel (kh, kw, cin, cout), finite."""
    weights = kernel.astype(np.float64)
    taps = weights.reshape(-1, *weights.shape[2:])
    cin, cout = taps.shape[1:]
    flat = taps.reshape(-1, cout)
    if moments is None:
        weighting = None
        seen = taps
        output_gram = flat.T @ flat
    else:
        weighting = _weighting(taps, moments)
        seen = weighting.root @ taps
        output_gram = flat.T @ weighting.product
    side = seen.transpose(1, 0, 2).reshape(cin, -1)
    of_input, input_vectors = _descending(side @ side.T)
    of_output, output_vectors = _descending(output_gram)
    return Unfoldings(weights, of_input, of_output, input_vectors, output_vectors, weighting)


def _descending(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = np.linalg.eigh((gram + gram.T) / 2)
    return values[::-1], vectors[:, ::-1]


def _weighting(taps: np.ndarray, moments: PatchMoments) -> Weighting:
    count, cin, cout = taps.shape
    mean = moments.mean.astype(np.float64)
    covariance = moments.second.astype(np.float64)
    floor = LEAST_RIDGE * float(np.trace(covariance))
    covariance -= np.outer(mean, mean)
    share = _shrinkage(covariance, moments.rows / count, floor)
    ridge = _shrink(covariance, share)
    channels = np.einsum("tatb->ab", covariance.reshape(count, cin, count, cin)) / count
    values, vectors = np.linalg.eigh((channels + channels.T) / 2)
    # What is shrunk has none that is negative but by rounding, and none near 0.
    values = np.sqrt(np.maximum(values, np.finfo(np.float64).eps * values[-1]))
    root, inverse_root = (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
    product = covariance @ taps.reshape(-1, cout)
    return Weighting(mean, covariance, product, root, inverse_root, share, ridge)


def _shrinkage(covariance: np.ndarray, samples: float, floor: float) -> float:
    """Share q of the identity by equation 23, or more, so that q * trace is at least the floor; 1 where the trace is
    no more than that. covariance (d, d)."""
    size = covariance.shape[0]
    trace, squares = float(np.trace(covariance)), float(np.vdot(covariance, covariance))
    if trace <= floor:
        return 1.0
    unlike = (samples + 1 - 2 / size) * (squares - trace**2 / size)
    share = ((1 - 2 / size) * squares + trace**2) / unlike if unlike > 0 else 1.0
    return min(MOST_SHRINKAGE, max(share, floor / trace))


def _shrink(covariance: np.ndarray, share: float) -> float:
    """Shrinks in place, since a covariance is hundreds of megabytes; the multiple of the identity that it adds."""
    size = covariance.shape[0]
    # What reads a constant has no covariance: then every error of the kernel counts alike.
    ridge = share * float(np.trace(covariance)) / size if share < 1 else 1.0
    covariance *= 1 - share
    covariance[np.diag_indices(size)] += ridge
    return ridge


def factorize(unfoldings: Unfoldings, ranks: tuple[int, int]) -> Factors:
    """The three factors of these ranks (input, output), each from 1 to the kernel's channels."""
    if unfoldings.weighting is None:
        return _plain(unfoldings, ranks)
    return _weighted(unfoldings, unfoldings.weighting, ranks)


def _plain(unfoldings: Unfoldings, ranks: tuple[int, int]) -> Factors:
    kernel = unfoldings.kernel
    kh, kw, cin, cout = kernel.shape
    first, last = unfoldings.input_vectors[:, : ranks[0]], unfoldings.output_vectors[:, : ranks[1]]
    # One tap is a matrix, whose leading singular vectors are optimal; so are all vectors of a mode at full rank.
    if kh * kw > 1 and ranks != (cin, cout) and np.any(kernel):
        first, last = _refined(kernel, first, last)
    first, last = first * _signs(first), last * _signs(last)
    core = first.T @ kernel @ last
    # The columns are orthonormal: what is lost is orthogonal to what is kept.
    whole, held = float(np.vdot(kernel, kernel)), float(np.vdot(core, core))
    return Factors(first, core, last, (max(0.0, whole - held) / whole) ** 0.5 if whole else 0.0, None)


def _refined(kernel: np.ndarray, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The factors after sweeps of tensorly's iteration, orthonormal columns, as many as before."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    taps, r_in, r_out = kernel.shape[0] * kernel.shape[1], first.shape[1], last.shape[1]
    # No more than these can carry anything given the other: a sweep finds only them.
    used = min(r_in, taps * r_out), min(r_out, taps * r_in)
    # In float32, twice as fast; scaled, since it squares.
    scaled = (kernel / np.abs(kernel).max()).astype(np.float32)
    start = [factor[:, :rank].astype(np.float32) for factor, rank in zip((first, last), used, strict=True)]
    with tensorly.backend_context("numpy", local_threadsafe=True):
        core = tensorly.tenalg.multi_mode_dot(scaled, start, modes=[2, 3], transpose=True)
        (_, found), _ = partial_tucker(
            scaled, rank=used, modes=[2, 3], init=(core, start), n_iter_max=SWEEPS, tol=0, random_state=0
        )
    return _completed(found[0], first), _completed(found[1], last)


def _completed(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The span of found, and of as much of wanted as makes it as wide; orthonormal columns, float64."""
    missing = wanted.shape[1] - found.shape[1]
    basis, _ = np.linalg.qr(found.astype(np.float64))
    if not missing:
        return basis
    # Vectors of wanted that found lacks most: never a span that repeats itself.
    rest, _, _ = np.linalg.svd(wanted - basis @ (basis.T @ wanted), full_matrices=False)
    return np.hstack([basis, rest[:, :missing]])


def _signs(vectors: np.ndarray) -> np.ndarray:
    """Factors 1 or -1 that make each column's largest entry positive: eigenvectors' signs are arbitrary, results are
    not to be."""
    largest = np.take_along_axis(vectors, np.argmax(np.abs(vectors), axis=0)[None], axis=0)[0]
    return np.where(largest < 0, -1.0, 1.0)


def _weighted(unfoldings: Unfoldings, weighting: Weighting, ranks: tuple[int, int]) -> Factors:
    kernel = unfoldings.kernel
    kh, kw, cin, cout = kernel.shape
    first, _ = np.linalg.qr(weighting.inverse_root @ unfoldings.input_vectors[:, : ranks[0]])
    core, last, held = _regression(first, weighting, ranks[1])
    for _ in range(ROUNDS if ranks[0] < cin else 0):
        # Orthonormal columns, as plain factors have: equations stay well conditioned, activations of the same size.
        other, _ = np.linalg.qr(_improved(first, core, last, weighting))
        other_core, other_last, other_held = _regression(other, weighting, ranks[1])
        if other_held <= held:
            break
        first, core, last, held = other, other_core, other_last, other_held
    signs, last_signs = _signs(first), _signs(last)
    first, last, core = first * signs, last * last_signs, core * signs[:, None] * last_signs
    factors = Factors(first, core.reshape(kh, kw, *ranks), last, 0.0, None)
    lost = (kernel - factors.kernel).reshape(-1, cout)
    whole = weighting.measured_square(kernel.reshape(-1, cout))
    error = (weighting.measured_square(lost) / whole) ** 0.5 if whole else 0.0
    return dataclasses.replace(factors, error=error, lost_mean=lost.T @ weighting.mean)


def _regression(first: np.ndarray, weighting: Weighting, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The best core (T, r_in, rank) and last (cout, rank) after a first (cin, r_in), and the output's mean square that
    they hold."""
    cin, r_in = first.shape
    count = weighting.mean.size // cin
    half = (weighting.covariance.reshape(-1, cin) @ first).reshape(count, cin, count * r_in)
    inner = (first.T @ half).reshape(count * r_in, count * r_in)
    product = (first.T @ weighting.product.reshape(count, cin, -1)).reshape(count * r_in, -1)
    solution = np.linalg.solve(inner, product)
    values, vectors = _descending(product.T @ solution)
    last = vectors[:, :rank]
    return (solution @ last).reshape(count, r_in, rank), last, float(values[:rank].sum())


def _improved(first: np.ndarray, core: np.ndarray, last: np.ndarray, weighting: Weighting) -> np.ndarray:
    """A better first for the same core and last: conjugate gradients on step 3's equation, preconditioned by what it
    is without correlations between taps, S A sum_t G_t G_t^T."""
    count, (cin, _) = core.shape[0], first.shape
    covariance = weighting.covariance

    def after_core(rows: np.ndarray) -> np.ndarray:
        total: np.ndarray = (rows.reshape(count, cin, -1) @ core.transpose(0, 2, 1)).sum(axis=0)
        return total

    def applied(direction: np.ndarray) -> np.ndarray:
        return after_core(covariance @ (direction @ core).reshape(count * cin, -1))

    gram = (core @ core.transpose(0, 2, 1)).sum(axis=0)
    # It has no inverse where the core's other side is narrower than this one.
    gram[np.diag_indices_from(gram)] += 1e-6 * np.trace(gram) or 1.0
    inverse_gram = np.linalg.inv(gram)

    def preconditioned(residual: np.ndarray) -> np.ndarray:
        return weighting.inverse_root @ (weighting.inverse_root @ (residual @ inverse_gram))

    residual = after_core(weighting.product @ last) - applied(first)
    towards = preconditioned(residual)
    direction, size = towards, float(np.vdot(residual, towards))
    for _ in range(STEPS):
        image = applied(direction)
        curvature = float(np.vdot(direction, image))
        if size <= 0 or curvature <= 0:
            break
        first = first + size / curvature * direction
        residual = residual - size / curvature * image
        towards = preconditioned(residual)
        previous, size = size, float(np.vdot(residual, towards))
        direction = towards + size / previous * direction
    return first
