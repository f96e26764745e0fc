"""Runs and judgements on disk, the rule for ties, and metrics against loops that follow their definitions."""

import math
from itertools import permutations
from statistics import fmean

import ir_measures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlalign.evals.metrics.paired import paired
from vlalign.evals.ranking import chance, check, label, means, measured, parse, row
from vlalign.evals.runs import completed, ordered, read_qrels, read_run, write_run
from vlalign.types import DataError, UserError

NAMES = (
    "nDCG@3",
    "nDCG@10",
    "nDCG",
    "RR@2",
    "RR@10",
    "RR",
    "AP",
    "AP@2",
    "R@1",
    "R@3",
    "P@1",
    "P@5",
    "Success@2",
)
GAINS = {"linear": lambda grade: grade, "exponential": lambda grade: 2**grade - 1}


def naive(name, gain, order, grades):
    """A metric of one order of documents, in float64."""
    kind, _, cutoff = name.partition("@")
    k = int(cutoff) if cutoff else 10**6
    relevant = {document for document, grade in grades.items() if grade > 0}
    top = order[:k]
    if not relevant:
        return 0.0
    if kind == "nDCG":
        gains = [GAINS[gain](max(grades.get(document, 0), 0)) for document in top]
        best = sorted((GAINS[gain](max(grade, 0)) for grade in grades.values()), reverse=True)[:k]
        dcg, ideal = (sum(g / math.log2(i + 2) for i, g in enumerate(each)) for each in (gains, best))
        return dcg / ideal
    if kind == "RR":
        return next((1 / (i + 1) for i, document in enumerate(top) if document in relevant), 0.0)
    if kind == "AP":
        hits, total = 0, 0.0
        for i, document in enumerate(top):
            if document in relevant:
                hits += 1
                total += hits / (i + 1)
        return total / len(relevant)
    found = len(relevant & set(top))
    return {"R": found / len(relevant), "P": found / k, "Success": float(found > 0)}[kind]


def by_hand(scores):
    """The order of one query's documents, by comparing two at a time."""
    left = list(scores)
    order = []
    while left:
        best = left[0]
        for other in left[1:]:
            if scores[other] > scores[best] or (scores[other] == scores[best] and other > best):
                best = other
        left.remove(best)
        order.append(best)
    return order


DOCUMENTS = st.sampled_from(["a", "b", "b2", "c", "10", "9", "Ä", "zz"])
# Few values, so that many tie; two of them are one number in float32, and no tie.
SCORES = st.sampled_from([0.0, 1.0, 1.0 + 1e-12, -3.5, 2.0**24, 2.0**24 + 1])
QUERIES = st.sampled_from(["q1", "q2", "q3", "q4"])
RUNS = st.dictionaries(QUERIES, st.dictionaries(DOCUMENTS, SCORES, max_size=8), max_size=4)
QRELS = st.dictionaries(
    QUERIES, st.dictionaries(DOCUMENTS, st.integers(-1, 4), max_size=6), min_size=1, max_size=4
)


@settings(max_examples=150, deadline=None)
@given(RUNS, QRELS, st.sampled_from(sorted(GAINS)))
def test_metrics_are_those_of_a_loop_on_any_run(run, qrels, gain):
    """Ties, queries left out, queries without a positive, positives not retrieved, documents not judged."""
    table = measured(run, qrels, NAMES, gain)
    for name in NAMES:
        assert list(table[label(name, gain)]) == list(qrels)
        for query, grades in qrels.items():
            wanted = naive(name, gain, by_hand(run.get(query, {})), grades)
            assert table[label(name, gain)][query] == pytest.approx(wanted, abs=1e-12), (name, query)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(DOCUMENTS, SCORES, max_size=5), st.dictionaries(DOCUMENTS, st.integers(-1, 3), max_size=5)
)
def test_chance_is_the_mean_over_all_orders(scores, grades):
    for gain in GAINS:
        table = chance({"q": scores}, {"q": grades}, NAMES, gain)
        for name in NAMES:
            wanted = fmean(naive(name, gain, list(order), grades) for order in permutations(scores))
            assert table[label(name, gain)]["q"] == pytest.approx(wanted, abs=1e-12), name


def test_chance_of_many_documents_is_a_number():
    run = {"q": {str(each): 0.0 for each in range(3000)}}
    table = chance(run, {"q": {"5": 1, "7": 2, "not found": 1}}, NAMES, "linear")
    assert all(0 < values["q"] < 1 for values in table.values())
    assert table["R@3"]["q"] == pytest.approx(2 / 3 * 3 / 3000)


def test_a_gain_is_named_and_is_the_one_of_its_name():
    qrels, run = {"q": {"a": 3, "b": 1}}, {"q": {"b": 2.0, "a": 1.0}}
    assert measured(run, qrels, ["nDCG@10"], "linear") == {
        "nDCG_linear@10": {"q": pytest.approx((1 + 3 / math.log2(3)) / (3 + 1 / math.log2(3)))}
    }
    assert measured(run, qrels, ["nDCG@10"], "exponential") == {
        "nDCG_exponential@10": {"q": pytest.approx((1 + 7 / math.log2(3)) / (7 + 1 / math.log2(3)))}
    }


def test_the_providers_of_ir_measures_alone_break_ties_otherwise():
    """Why places are given for scores: both say another thing of equal scores, and one reads float32."""
    qrels, run = {"q": {"a": 1, "b": 0}}, {"q": {"a": 1.0, "b": 1.0}}
    raw = {
        str(m): v
        for m, v in ir_measures.calc_aggregate([ir_measures.RR @ 10, ir_measures.P @ 1], qrels, run).items()
    }
    assert raw["RR@10"] == 1.0 and raw["P@1"] == 0.0  # msmarco: the first name; trec_eval: the last
    ours = means(measured(run, qrels, ["RR@10", "P@1"], "linear"))
    assert ours == {"RR@10": 0.5, "P@1": 0.0}
    near = {"q": {"a": 2.0**24 + 1, "b": 2.0**24}}
    assert measured(near, qrels, ["P@1"], "linear") == {"P@1": {"q": 1.0}}


def test_a_query_that_is_left_out_counts_zero_and_one_that_is_not_judged_does_not_count():
    run, qrels = {"q1": {"a": 1.0}, "other": {"a": 1.0}}, {"q1": {"a": 1}, "q2": {"a": 1}}
    assert completed(run, qrels) == {"q1": {"a": 1.0}, "q2": {}}
    assert means(measured(run, qrels, ["P@1"], "linear")) == {"P@1": 0.5}
    found = row("d", run, qrels, ["RR", "nDCG@5"], "linear")
    assert found.metrics == {"RR": 0.5, "nDCG_linear@5": 0.5, "aurc": 0.25, "without_positive": 0}
    assert found.chance == {"RR": 0.5, "nDCG_linear@5": 0.5, "aurc": 0.5}
    assert found.exhibits["queries"] == {
        "query": ["q1", "q2"],
        "ranked": [1, 0],
        "positives": [1, 1],
        "RR": [1.0, 0.0],
        "nDCG_linear@5": [1.0, 0.0],
    }


def test_a_metric_has_one_spelling():
    assert parse("nDCG@10") == ("nDCG", 10) and parse("AP") == ("AP", None)
    for name, told in {
        "MRR@10": "'MRR@10' is no metric of a ranking. Did you mean 'RR'[?] Known: nDCG, RR, AP, ",
        "MAP": "Did you mean 'AP'",
        "R": "'R' needs a whole number of places, such as R@10",
        **{
            name: "needs a whole number of places, such as P@10"
            for name in ("P@0", "P@", "P@x", "P@1.5", "P@１")
        },
    }.items():
        with pytest.raises(ValueError, match=f"^metrics: .*{told}"):
            check([name])
    with pytest.raises(ValueError, match="metrics is empty"):
        check([])


@pytest.mark.parametrize(("gain", "most"), [("linear", 4096), ("exponential", 12)])
def test_a_grade_that_is_too_high_is_told(gain, most):
    assert measured({}, {"q": {"a": most}}, ["nDCG"], gain) == {f"nDCG_{gain}": {"q": 0.0}}
    with pytest.raises(
        DataError, match=f"query 'q' has a grade of {most + 1}; .* {gain} the highest is {most}"
    ):
        measured({}, {"q": {"a": most + 1}}, ["nDCG"], gain)


WORDS = st.text(min_size=1, max_size=4).filter(lambda text: text.split() == [text] and text.isprintable())
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(WORDS, st.dictionaries(WORDS, FLOATS, min_size=1, max_size=5), min_size=1, max_size=3))
def test_a_run_reads_back_exactly(tmp_path_factory, run):
    path = tmp_path_factory.mktemp("runs") / "run.txt"
    write_run(path, run.items(), tag="ours")
    assert read_run(path) == run
    lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    assert {(line[1], line[5]) for line in lines} == {("Q0", "ours")}
    for query, documents in ordered(run).items():
        assert documents == by_hand(run[query])
        assert [(d, int(rank)) for q, _, d, rank, *_ in lines if q == query] == [
            (document, place) for place, document in enumerate(documents, 1)
        ]


def test_judgements_are_read(tmp_path):
    (tmp_path / "qrels").write_text("q1 0 a 1\nq1 0 b 0\nq2 0 c -2\n")
    assert read_qrels(tmp_path / "qrels") == {"q1": {"a": 1, "b": 0}, "q2": {"c": -2}}


def test_what_others_write_is_read(tmp_path):
    (tmp_path / "run").write_bytes(b"\xef\xbb\xbfq1\tQ0\td1\t0\t-1e-3\ttag\r\n\r\nq1 Q0  d2 7 3 tag\r\n")
    assert read_run(tmp_path / "run") == {"q1": {"d1": -0.001, "d2": 3.0}}
    (tmp_path / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td2\t0\n")
    assert read_qrels(tmp_path / "test.tsv") == {"q1": {"d1": 1, "d2": 0}}


@pytest.mark.parametrize(
    ("read", "line", "told"),
    [
        (
            read_run,
            "q Q0 d 1 0.5",
            ":2: expected the 6 words `query Q0 document rank score tag`, got 5: 'q Q0 d",
        ),
        (read_run, "q Q0 d 1 high t", ":2: a score must be a finite number, got 'high'"),
        (read_run, "q Q0 d 1 nan t", ":2: a score must be a finite number, got 'nan'"),
        (read_run, "q Q0 a 1 2 t", ":2: document 'a' stands twice for query 'q'"),
        (read_qrels, "q 0 d 1.5", ":2: a grade must be a whole number, got '1.5'"),
        (read_qrels, "q d", ":2: expected the 4 words `query 0 document grade`, got 2: 'q d'"),
        (read_qrels, "q d score", ":2: a grade must be a whole number, got 'score'"),
        (read_qrels, "q 0 a 0", ":2: document 'a' stands twice for query 'q'"),
    ],
)
def test_a_bad_line_is_told_with_its_place(tmp_path, read, line, told):
    path = tmp_path / "file"
    path.write_text({read_run: "q Q0 a 1 9 t", read_qrels: "q 0 a 1"}[read] + f"\n{line}\n")
    with pytest.raises(DataError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}{told}")


@pytest.mark.parametrize("read", [read_run, read_qrels])
def test_a_file_that_says_nothing_is_told(tmp_path, read):
    with pytest.raises(DataError, match="nowhere cannot be read: .*No such file.*expected lines `query "):
        read(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"q Q0 \xff\xfe")
    with pytest.raises(DataError, match="binary cannot be read: .*utf-8"):
        read(tmp_path / "binary")
    (tmp_path / "blank").write_text("\n \n")
    with pytest.raises(DataError, match="blank is empty; expected lines `query "):
        read(tmp_path / "blank")


@pytest.mark.parametrize(("query", "document"), [("a query", "d"), ("q", ""), ("q", "d\n"), ("\u3000q", "d")])
def test_what_a_line_cannot_say_is_not_written(tmp_path, query, document):
    with pytest.raises(UserError, match="cannot be written, a name in it has no blanks and is not empty"):
        write_run(tmp_path / "file", [(query, {document: 1.0})])
    assert not list(tmp_path.iterdir())


def test_a_score_that_is_no_number_is_not_written(tmp_path):
    with pytest.raises(UserError, match="run: the score of 'd' for 'q' is nan"):
        write_run(tmp_path / "run", [("q", {"d": math.nan})])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
def test_a_paired_difference_is_scipys(pairs):
    from scipy.stats import ttest_rel

    first, second = zip(*pairs, strict=True)
    found = paired(first, second)
    differences = [a - b for a, b in pairs]
    assert found["difference"] == pytest.approx(fmean(differences), abs=1e-12)
    spread = max(differences) - min(differences)
    if spread < 1e-6:
        return
    wanted = ttest_rel(first, second)
    interval = wanted.confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert found["p"] == pytest.approx(max(wanted.pvalue, 2.0 ** (1 - len(pairs))), abs=1e-9)


def test_a_paired_difference_of_few_or_equal_queries_promises_nothing():
    assert paired([1.0], [0.25]) == {"difference": 0.75}
    assert paired([0.5, 1.0], [0.5, 1.0]) == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    assert paired([1.0, 1.0], [0.0, 0.0]) == {"difference": 1.0, "low": 1.0, "high": 1.0, "p": 0.5}
    assert paired([1.0] * 6, [0.0] * 6)["p"] == 2**-5
