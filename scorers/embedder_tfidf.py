"""Embeddings that need no model: TF-IDF of words, as it is or after truncated SVD; fitted on the pool."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from karat.fitting import Arrays, Fitting
from karat.scorers.embedders import Embedder, Encoded, Encoder
from karat.scorers.terms import Vocabulary, count_documents, term_counts
from karat.scorers.unit_rows import scaled, unit_rows

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Below this share of a unit vector, what is left after projection is rounding and has no direction.
NOTHING = 1e-6
# A fit in memory: so much text of the pool, and of each text no more than its beginning.
FIT_BYTES = 128 << 20
FIT_CHARACTERS = 1 << 20


class Tfidf(Embedder):
    """TF-IDF of words: v_t = (1 + ln count_t) · (ln((1 + n) / (1 + n_t)) + 1), scaled to length one.

    n: documents fitted on, n_t: those with the term. As scikit-learn's TfidfVectorizer with
    sublinear_tf=True, smooth_idf=True and the terms of karat.scorers.terms. Terms outside the vocabulary
    do not count; a text without known terms has the zero vector. Sublinear counts and punctuation as terms
    are ours: on grade-school maths among four domains they raised AUC from .956 to .992.

    Fitted on the pool, a content that occurs k times counting k times, and the reference. Of a pool of more
    than `fit_rows` distinct texts, or of more than 128 MiB, a random draw is used, and of a text the first
    2²⁰ characters; all texts are then scored in full.
    """

    summary: ClassVar[str] = "TF-IDF of words, fitted on the pool"
    formula: ClassVar[str] = "(1 + ln count) (ln((1 + n) / (1 + n_t)) + 1), length one"
    paper: ClassVar[str] = "Salton and Buckley 1988, Term-weighting approaches in automatic text retrieval"

    max_terms: int = Field(
        65_536, ge=1, le=1 << 20, description="terms in the vocabulary: those in the most documents"
    )
    fit_rows: int = Field(
        100_000, ge=1, description="fit on at most so many distinct rows of the pool, drawn at random"
    )
    seed: int = Field(0, ge=0, lt=1 << 32, description="seed of that draw, and of the SVD")

    def environment(self) -> dict[str, str]:
        """polars cuts the terms; scipy multiplies."""
        return {"polars": pl.__version__, "scipy": version("scipy")}

    def needs_pool(self) -> bool:
        """True: the weights of the terms come from it."""
        return True

    def fit(self, pool: pl.DataFrame, reference: pl.Series, fitting: Fitting) -> Arrays:
        """Arrays of the vocabulary: its terms as UTF-8 bytes, where each begins, and `idf` [V]."""
        return self._vocabulary(*self._documents(pool, reference)).arrays()

    def load(self, fitted: Arrays | None) -> Encoder:
        """Vectors [N, V], sparse."""
        vocabulary = _fitted(fitted)

        def encode(texts: Sequence[str]) -> Encoded:
            return Encoded(tfidf(pl.Series(texts, dtype=pl.String), vocabulary))

        return encode

    def _documents(self, pool: pl.DataFrame, reference: pl.Series) -> tuple[pl.Series, NDArray[np.int64]]:
        """Texts to fit on and how often each counts; the draw depends on contents and seed alone."""
        beginnings = pl.col("text").str.slice(0, FIT_CHARACTERS)
        sizes = pool.select(beginnings.str.len_bytes().cast(pl.Int64))["text"].to_numpy()
        if pool.height > self.fit_rows or sizes.sum() > FIT_BYTES:
            drawn = np.random.default_rng(self.seed).permutation(pool.height)[: self.fit_rows]
            pool = pool[np.sort(drawn[np.cumsum(sizes[drawn]) <= FIT_BYTES])]
        texts = pl.concat([pool["text"], reference.cast(pl.String).rename("text")])
        texts = texts.to_frame().select(beginnings)["text"]
        copies = np.concatenate([pool["copies"].to_numpy(), np.ones(len(reference))]).astype(np.int64)
        return texts, copies

    def _vocabulary(self, texts: pl.Series, copies: NDArray[np.int64]) -> Vocabulary:
        found = count_documents(texts, copies).sort(
            ["documents", "term"], descending=[True, False]
        )  # a tie goes to the term that comes first
        kept = found.head(self.max_terms).sort("term")
        frequency = kept["documents"].to_numpy()
        idf = np.log((1 + copies.sum()) / (1 + frequency)) + 1
        return Vocabulary(tuple(kept["term"]), idf.astype(np.float64))


class TfidfSvd(Tfidf):
    """Latent semantic analysis: TF-IDF projected onto the leading right singular vectors of the pool.

    X ≈ U S Vᵀ (TF-IDF of the documents fitted on); the vector of x is x V [D]. A text whose projection is
    shorter than 10⁻⁶ has the zero vector: what is left is rounding. Randomised SVD (Halko et al. 2011) as in
    scikit-learn's TruncatedSVD, seeded, on one BLAS thread; a row of k copies counts k times.
    """

    summary: ClassVar[str] = "TF-IDF and truncated SVD (latent semantic analysis), fitted on the pool"
    formula: ClassVar[str] = "x V, with X = U S Vᵀ the truncated SVD of the pool's TF-IDF"
    paper: ClassVar[str] = "Deerwester et al. 1990, Indexing by Latent Semantic Analysis"

    components: int = Field(100, ge=1, le=1024, description="dimensions, at most")

    def environment(self) -> dict[str, str]:
        """scikit-learn computes the SVD."""
        return {**super().environment(), "scikit-learn": version("scikit-learn")}

    def fit(self, pool: pl.DataFrame, reference: pl.Series, fitting: Fitting) -> Arrays:
        """The vocabulary and `components` [D, V] float32."""
        texts, copies = self._documents(pool, reference)
        vocabulary = self._vocabulary(texts, copies)
        fitting.report(1, 3)
        documents = tfidf(texts, vocabulary)
        fitting.report(2, 3)
        # A row repeated k times adds k times its outer product, which is what sqrt(k) does.
        weighted = scaled(documents, np.sqrt(copies))
        components = _right_singular_vectors(weighted, self.components, self.seed)
        fitting.report(3, 3)
        return {**vocabulary.arrays(), "components": components}

    def load(self, fitted: Arrays | None) -> Encoder:
        """Vectors [N, D]."""
        vocabulary = _fitted(fitted)
        assert fitted is not None  # noqa: S101 - narrows the type
        projection = np.ascontiguousarray(fitted["components"].T, dtype=np.float64)

        def encode(texts: Sequence[str]) -> Encoded:
            # scipy multiplies a sparse matrix row by row and term by term, so a row's result has nothing to
            # do with its neighbours, which a dense product by BLAS does not promise.
            dense = tfidf(pl.Series(texts, dtype=pl.String), vocabulary) @ projection
            dense[unit_rows(dense)[1] < NOTHING] = 0
            return Encoded(dense)

        return encode


def tfidf(texts: pl.Series, vocabulary: Vocabulary) -> csr_array:
    """[N, V] sparse, rows of length one or zero."""
    counts = term_counts(texts, vocabulary)
    distinct, place = np.unique(counts.data, return_inverse=True)
    # A vectorised log may round differently by where a number stands; there are few distinct counts.
    weights = np.array([1 + math.log(count) for count in distinct.tolist()], np.float64)
    counts.data = weights[place] * vocabulary.idf[counts.indices]
    return unit_rows(counts)[0]


def _fitted(fitted: Arrays | None) -> Vocabulary:
    if fitted is None:
        raise ValueError("load() of an embedder that needs the pool was called before fit()")
    return Vocabulary.of(fitted)


def _right_singular_vectors(documents: csr_array, components: int, seed: int) -> NDArray[np.float32]:
    from sklearn.utils.extmath import randomized_svd
    from threadpoolctl import threadpool_limits

    wanted = min(components, *documents.shape)
    if not documents.nnz:
        return np.zeros((0, documents.shape[1]), np.float32)
    # Another number of threads sums in another order.
    with threadpool_limits(1, user_api="blas"):
        _, values, vectors = randomized_svd(documents, wanted, n_iter=5, random_state=seed)
    # A singular value of zero has no direction of its own: its vector would be noise.
    return np.ascontiguousarray(vectors[values > NOTHING * values[0]], dtype=np.float32)
