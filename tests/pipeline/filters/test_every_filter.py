"""Laws that every filter obeys: a document's scores depend on the document alone, and each reason has one threshold."""

import ast
import importlib
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from corpus_steps import run_corpus_step
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import CHINESE, DAMAGED, ENGLISH, ODD, batch_of, equal_scores, real_texts, reasons

import pipeline.filters
from pipeline.filters.bad_words import BadWords
from pipeline.filters.c4 import C4
from pipeline.filters.chinese import Chinese
from pipeline.filters.code import Code
from pipeline.filters.contamination import Contamination
from pipeline.filters.fasttext_quality import FastTextQuality
from pipeline.filters.fineweb import FineWeb
from pipeline.filters.gopher_quality import GopherQuality
from pipeline.filters.gopher_repetition import GopherRepetition
from pipeline.filters.kl_divergence import KLDivergence
from pipeline.filters.language import Language
from pipeline.filters.misspelling import Misspelling
from pipeline.filters.ngram_coverage import NgramCoverage
from pipeline.filters.perplexity import Perplexity
from pipeline.filters.python import Python
from pipeline.filters.refinedweb import RefinedWeb
from pipeline.filters.symbols import Symbols
from pipeline.filters.url_blocklist import UrlBlocklist
from pipeline.step import Documents

FILTERS = [
    GopherQuality(),
    GopherQuality(variant="datatrove"),
    GopherQuality(variant="dolma"),
    GopherQuality(variant="dclm"),
    GopherQuality(variant="redpajama"),
    GopherRepetition(),
    GopherRepetition(variant="dolma"),
    GopherRepetition(variant="dclm"),
    GopherRepetition(variant="redpajama"),
    GopherRepetition(variant="datatrove"),
    C4(),
    C4(variant="datatrove"),
    C4(variant="dolma"),
    FineWeb(),
    FineWeb(variant="datatrove"),
    NgramCoverage(),
    RefinedWeb(),
    Symbols(),
    BadWords(),
    Chinese(),
    Code(),
    Language(keep={"en": 0.65, "zh": 0.65}, lines=True, max_other_lines=0.9),
    Perplexity(model="model.arpa", lower=False, head_max=50, middle_max=500),
    Perplexity(model="model.arpa", tokens="characters"),
    Contamination(benchmarks={"items": "items.jsonl"}, action="cut"),
    UrlBlocklist(soft_words=("words.txt",)),
    Python(function="texts_rules:shouting"),
]
"""All that judge a document alone; paths are those of the files that `step` writes."""
TEXTS = [*ODD, *DAMAGED, ENGLISH, CHINESE, ENGLISH + "\n\n" + ENGLISH, CHINESE * 3]
WORK = {
    "max_chars",
    "max_word_length",
    "min_words_per_line",
    "max_line_coverage",
    "min_line_words",
    "min_han",
    "min_line_chars",
}
"""Fields that sound like bounds and say how the work is done."""
ARPA = (
    "\\data\\\nngram 1=5\nngram 2=2\n\n\\1-grams:\n-9\t<s>\t-1\n-1\t</s>\n-2\t<unk>\n-1\tthe\t-1\n-1\t的\t-1\n\n"
    "\\2-grams:\n-1\t<s> the\n-1\t<s> 的\n\n\\end\\\n"
)
LINES = {RefinedWeb: ["max_removed_ratio"], Contamination: [], UrlBlocklist: ["max_soft_words"]}
"""Filters whose other bounds are about lines, which change the text."""


def named(step):
    return f"{step.step_name()}-{getattr(step, 'variant', '')}"


def scores_of(step, batch):
    docs = Documents(batch)
    found = step.scores(docs)
    verdict = step.verdict(docs, found)
    after = step.columns(docs)
    text = after.pop("text", docs.column("text"))
    columns = {name: np.array(values.to_pylist(), object) for name, values in after.items()}
    columns["text"] = np.array(text.view(pa.large_binary()).to_pylist(), object)
    return found | columns | {"reason": verdict.reason.astype(str)}


def joined(parts):
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


@pytest.fixture(scope="module", params=FILTERS, ids=named)
def step(request, files):
    """Each filter, with the files that its settings name."""
    return in_folder(request.param, files)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "model.arpa").write_text(ARPA, encoding="utf-8")
    (folder / "words.txt").write_text("example\norg\n")
    items = [{"q": ENGLISH[:100]}, {"q": CHINESE[:30]}]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    return folder


def in_folder(step, folder):
    """The filter with its paths below `folder`."""
    if isinstance(step, Perplexity):
        return step.model_copy(update={"model": str(folder / step.model)})
    if isinstance(step, Contamination):
        return step.model_copy(update={"benchmarks": {k: str(folder / v) for k, v in step.benchmarks.items()}})
    if isinstance(step, UrlBlocklist):
        return UrlBlocklist(**step.model_dump() | {"soft_words": tuple(str(folder / name) for name in step.soft_words)})
    return step


class TestEveryFilter:
    def test_batch_size_and_slices_change_nothing(self, step):
        batch = batch_of(TEXTS)
        whole = scores_of(step, batch)
        for size in (1, 3, 7):
            parts = [scores_of(step, batch.slice(at, size)) for at in range(0, len(TEXTS), size)]
            assert equal_scores(joined(parts), whole)

    def test_neighbours_change_nothing(self, step):
        whole = scores_of(step, batch_of(TEXTS))
        order = np.random.default_rng(1).permutation(len(TEXTS))
        mixed = scores_of(step, batch_of([TEXTS[i] for i in order]))
        assert equal_scores(mixed, {name: values[order] for name, values in whole.items()})

    def test_an_empty_batch_has_no_scores(self, step):
        assert all(len(v) == 0 for v in scores_of(step, batch_of(TEXTS).slice(3, 0)).values())

    @pytest.mark.parametrize(
        "text", ["", " ", "\n \u3000\t\n", "word", "字", b"\xed\xa0\x80", b"x \xed\xa0\x80\xed\xb0\x80 y"]
    )
    def test_documents_of_nothing_one_word_or_a_lone_surrogate_are_judged(self, step, text):
        alone = scores_of(step, batch_of([text]))
        among = scores_of(step, batch_of([ENGLISH, text, CHINESE]))
        assert equal_scores(alone, {name: values[1:2] for name, values in among.items() if name in alone})

    def test_scores_do_not_depend_on_thresholds(self, step):
        bounds = [n for n in type(step).model_fields if n.startswith(("min_", "max_", "dup_", "top_"))]
        bounds = [n for n in LINES.get(type(step), bounds) if n not in WORK]
        loose = dict.fromkeys(bounds)
        docs = Documents(batch_of(TEXTS))
        assert equal_scores(step.scores(docs), step.model_copy(update=loose).scores(docs))

    def test_a_document_of_ten_megabytes_is_judged(self, step):
        lines = "\n".join([ENGLISH, CHINESE])
        text = lines * (10_000_000 // len(lines.encode()) + 1)
        found = scores_of(step, batch_of([ENGLISH, text, CHINESE]))
        alone = scores_of(step, batch_of([ENGLISH]))
        assert all(len(values) == 3 for values in found.values())
        assert equal_scores({n: v[:1] for n, v in found.items()}, alone)

    @given(texts=st.lists(st.text(max_size=40) | st.binary(max_size=40), min_size=1, max_size=5), at=st.integers(0, 4))
    @settings(max_examples=25, deadline=None)
    def test_any_bytes_are_judged_the_same_alone_and_in_company(self, step, texts, at):
        at = min(at, len(texts) - 1)
        whole, alone = scores_of(step, batch_of(texts)), scores_of(step, batch_of(texts[at : at + 1]))
        assert equal_scores({name: values[at : at + 1] for name, values in whole.items()}, alone)

    def test_real_documents_keep_their_scores_in_any_cut(self, step):
        batch = batch_of(real_texts(200))
        parts = [scores_of(step, batch.slice(0, 77)), scores_of(step, batch.slice(77))]
        assert equal_scores(joined(parts), scores_of(step, batch))


@pytest.mark.parametrize("step", ["kl", "misspelling", "quality"])
def test_filters_that_look_at_the_corpus_judge_odd_and_huge_documents_in_any_cut(tmp_path, step):
    if step == "quality":
        (tmp_path / "good.jsonl").write_text("\n".join(json.dumps({"text": f"{ENGLISH} {i}"}) for i in range(30)))
        step = FastTextQuality(positives=(str(tmp_path / "good.jsonl"),), keep_share=0.5, dim=8)
    else:
        step = KLDivergence(percentile=90, min_documents=5) if step == "kl" else Misspelling()
    lines = f"{ENGLISH}\n{CHINESE}\n"
    texts = [*TEXTS, lines * (10_000_000 // len(lines.encode()) + 1)]
    one, reasons_one, _ = run_corpus_step(tmp_path / "one", step, batch_of(texts), partitions=1)
    many, reasons_many, _ = run_corpus_step(tmp_path / "many", step, batch_of(texts), partitions=4, batch_documents=3)
    assert reasons_one == reasons_many
    assert len(reasons_one) == len(texts)
    score = one.schema.names[-1]
    assert np.array_equal(one.column(score).to_numpy(), many.column(score).to_numpy(), equal_nan=True)


def rich(prose):
    """A document that has something of everything: symbols, bullets, ellipses, repeated lines, capitals, digits."""
    return f"# {prose} 42 ABC\n• {prose}…\n{prose}\n\n{prose}\nXY 12 - 7 # …\n{prose[:40]}...\n"


def texts_for(step):
    """(English, Chinese) documents for which all scores of a filter are numbers, where the filter has such."""
    english, chinese = rich(ENGLISH), rich(CHINESE)
    if isinstance(step, Chinese):
        return f"{ENGLISH}\n{english}\n{CHINESE}", chinese
    if isinstance(step, Code):
        return f"<html>\n<!-- # x -->\n{english}\n</html>", f"<html>\n<!-- # x -->\n{chinese}\n</html>"
    return english, chinese


def bounds():
    """(filter, number of the rule, field that is its bound) for each rule of each filter, found by changing fields."""
    for step in FILTERS:
        for field, info in type(step).model_fields.items():
            if info.annotation is not bool and isinstance(getattr(step, field), int | float | None):
                probe = step.model_copy(update={field: 0.4321}).rules()
                for number, (before, after) in enumerate(zip(step.rules(), probe, strict=True)):
                    if before != after:
                        yield step, number, field


BOUNDS = list(bounds())
UNDEFINED = {
    ("gopher_quality", "dclm", "ellipsis_ratio"): "counts ellipses among hash_ratio",
    ("gopher_quality", "redpajama", "ellipsis_ratio"): "counts ellipses among hash_ratio",
    ("gopher_quality", "redpajama", "stop_words"): "has no rule about stop words",
    ("gopher_repetition", "redpajama", "dup_para_frac"): "has no paragraph rules",
    ("gopher_repetition", "redpajama", "dup_para_char_frac"): "has no paragraph rules",
    ("gopher_repetition", "redpajama", "dup_line_frac"): "has no line rules",
    ("gopher_repetition", "redpajama", "dup_line_char_frac"): "has no line rules",
    ("gopher_quality", "paper", "mean_word_length"): "has no mean for words of one character each",
    ("gopher_quality", "dolma", "ellipsis_ratio"): "counts ellipses among hash_ratio",
    ("gopher_repetition", "dolma", "dup_para_frac"): "has no paragraph rules",
    ("gopher_repetition", "dolma", "dup_para_char_frac"): "has no paragraph rules",
}
"""Scores that are no number for one of the documents, which then stays."""


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize(("step", "number", "field"), BOUNDS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_document_goes_just_beyond_its_threshold_and_stays_at_it(files, step, number, field, language):
    rule = step.model_copy(update={field: 0.4321}).rules()[number]
    most = rule.at_most == 0.4321
    loose = {}
    for other, other_number, other_field in BOUNDS:
        if other is step and other_field != field:
            probe = step.model_copy(update={other_field: 0.4321}).rules()[other_number]
            loose[other_field] = 1e18 if probe.at_most == 0.4321 else -1e18
    docs = Documents(batch_of([texts_for(step)[language == "zh"]]))
    step = in_folder(step.model_copy(update=loose), files)
    scores = step.scores(docs)
    value = float(scores[rule.score][0])
    whole = "int" in str(type(step).model_fields[field].annotation)
    side = (-1 if most else 1) * (1 if whole else 1e-9)
    for bound, goes in ((value + side, True), (value, False), (value - side, False)):
        verdict = step.model_copy(update={field: bound}).verdict(docs, scores)
        if math.isnan(value):
            name = step.step_name().split(".")[1]
            assert (name, getattr(step, "variant", ""), rule.score) in UNDEFINED
            assert verdict.reason[0] is None
        elif goes:
            assert (verdict.reason[0], verdict.score[0], verdict.threshold[0]) == (rule.reason, value, bound)
        else:
            assert verdict.reason[0] is None, (verdict.score[0], verdict.threshold[0])


FIXED = [
    (C4(min_num_sentences=0), "lorem_ipsum", [f"{ENGLISH}\nLorem", f"{ENGLISH}\nLorem ipsum is here now."]),
    (C4(min_num_sentences=0), "lorem_ipsum", [f"{CHINESE}\nLorem ipsu", f"{CHINESE}\n一二三四 lorem ipsum。"]),
    (C4(min_num_sentences=0), "curly_bracket", [f"{ENGLISH}\n(a)", f"{ENGLISH}\nfour words and {{ here."]),
    (C4(min_num_sentences=0), "curly_bracket", [f"{CHINESE}\n（", f"{CHINESE}\n一二三四{{。"]),
    (C4(variant="dolma"), "javascript", [f"{ENGLISH}\njava script", f"{ENGLISH}\nno JavaScript"]),
    (C4(variant="dolma"), "javascript", [f"{ENGLISH}\n爪哇", f"{ENGLISH}\n用javascript写"]),
    (C4(variant="dolma"), "nothing_left", ["three words here.", "two words."]),
    (C4(variant="dolma"), "nothing_left", ["三 个 词.", "两个词。"]),
    (GopherRepetition(variant="dclm"), "empty", ["a", "字", " \n"]),
    (FineWeb(line_punct_thr=0, short_line_thr=1), "empty", ["a", "字", "\n"]),
    (GopherRepetition(variant="datatrove", top_2_gram=1, top_3_gram=1, top_4_gram=1), "empty", ["a", "字", ""]),
    (Code(max_comment_ratio=None), "generated", ["\n\n# generate\n\n\nx = 1", "\n\n\n\n# auto-generated\nx = 1"]),
    (Code(max_comment_ratio=None), "generated", ["\n\n# 自动生\n\n\nx = 1", "\n\n\n\n# 自动生成\nx = 1"]),
    (Code(licences=("MIT",), max_comment_ratio=None), "licence", ["# SPDX-License-Identifier: MIT\nx", "x = 1"]),
    (Code(licences=("MIT",), max_comment_ratio=None), "licence", ["# SPDX-License-Identifier: MIT\n字", "字 = 一"]),
    (Code(), "xml", ["<xml>text</xml>", "<?xml ?><a>text and more of it</a>"]),
    (Code(), "xml", ["<文>文字</文>", "<?xml ?><文>文字文字文字</文>"]),
    (NgramCoverage(min_line_words=1, max_document_coverage=None), "nothing_left", [ENGLISH, "a b c d e " * 9]),
    (NgramCoverage(min_line_words=1, max_document_coverage=None), "nothing_left", [CHINESE, "一二三四五" * 9]),
    (RefinedWeb(max_removed_ratio=None), "nothing_left", [f"{ENGLISH}\n3 likes", "3 likes"]),
    (RefinedWeb(max_removed_ratio=None), "nothing_left", [f"{CHINESE}\n登录", "登录"]),
    (Language(keep={"en": 0.0}), "language_not_kept", [ENGLISH, CHINESE]),
    (Language(keep={"zh": 0.0}), "language_not_kept", [CHINESE, ENGLISH]),
]
"""Rules without a setting: documents that stay, and at last one that goes."""


@pytest.mark.parametrize(("step", "reason", "texts"), FIXED)
def test_rules_without_a_setting(step, reason, texts):
    assert reasons(step, *texts) == [None] * (len(texts) - 1) + [reason]


ELSEWHERE = {
    "wrong_script": ("test_chinese.py", "test_share_of_the_other_script"),
    "language_uncertain": ("test_language.py", "test_the_threshold_is_the_least_probability"),
    "language_unknown": ("test_language.py", "test_a_text_that_the_model_knows_nothing_of_is_unknown"),
    "mixed_languages": ("test_language.py", "test_lines_of_other_languages_are_a_share_of_the_text"),
    "contaminated_": ("test_contamination.py", "test_the_threshold_is_a_share_of_the_items_ngrams"),
    "token_divergence": ("test_kl_divergence.py", "test_the_absolute_limit_is_a_limit"),
    "misspelt": ("test_misspelling.py", "test_largest_share_of_rare_words"),
    "low_quality": ("test_fasttext_quality.py", "test_the_threshold_is_the_least_probability"),
    "blocked_domain": ("test_url_blocklist.py", "test_a_domain_blocks_its_subdomains_and_nothing_else"),
    "blocked_url": ("test_url_blocklist.py", "test_a_url_blocks_what_lies_below_it"),
    "blocked_url_word": ("test_url_blocklist.py", "test_words_substrings_and_soft_words"),
}
"""Reasons whose test just under, at and just over the threshold stands beside the filter: file and test."""


def reasons_in(module):
    """All reasons that a filter's source names: of its Rules, and what it writes to `reason`."""
    found = set()
    for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Rule":
            found.add(node.args[0])
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(target, ast.Subscript) and getattr(target.value, "attr", "") == "reason":
            found.add(node.value)
        if isinstance(node, ast.For) and "reason" in ast.unparse(node.target):
            found |= {part.elts[1] for part in getattr(node.iter, "elts", [])}
    names = {node.value for node in found if isinstance(node, ast.Constant)}
    return names | {node.values[0].value for node in found if isinstance(node, ast.JoinedStr)}


def test_every_reason_of_every_filter_has_a_test_at_its_threshold():
    ruled = {(step.step_name(), step.rules()[number].reason) for step, number, _ in BOUNDS}
    ruled |= {(step.step_name(), reason) for step, reason, _ in FIXED}
    here = Path(__file__).parent
    missing = []
    for path in sorted(Path(pipeline.filters.__file__).parent.glob("[a-z]*.py")):
        module = importlib.import_module(f"pipeline.filters.{path.stem}")
        for reason in reasons_in(module):
            if (f"filters.{path.stem}", reason) in ruled:
                continue
            file, test = ELSEWHERE.get(reason, ("", ""))
            if not file or f"def {test}(" not in (here / file).read_text() or reason not in (here / file).read_text():
                missing.append((path.stem, reason))
    assert missing == []
    assert {("filters.gopher_repetition", f"dup_{n}_gram") for n in range(5, 11)} <= ruled
