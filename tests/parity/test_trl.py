"""Our losses and gradients are those of TRL's own trainers, each on its own batches: packed here, padded there.

The same float64 model, random ragged prompts and answers; TRL's collators and `compute_loss` do their own work.
Where the two differ, a test names it.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast

trl = pytest.importorskip("trl", reason="needs TRL: pip install 'corpusmill[parity]'")

from datasets import Dataset  # noqa: E402
from float64 import exact  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from trainers import preference, sft  # noqa: E402
from trainers.batch import Rows, collate, padded  # noqa: E402
from trainers.divergence import divergence, log_probabilities  # noqa: E402
from trainers.model import ModelSettings, PackedLM, build  # noqa: E402
from trainers.preference import Preference, preference_loss  # noqa: E402
from trainers.ranks import Ranks  # noqa: E402
from trainers.reward import PackedReward, Reward, classifier, reward_loss  # noqa: E402
from trainers.roles import Frozen  # noqa: E402

ALONE = Ranks(0, 1, torch.device("cpu"))
SHAPE = ModelSettings(hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=64)
VOCABULARY, WIDTH = 300, 160


def lm_of(seed):
    return exact(build(SHAPE, vocab_size=VOCABULARY, seq_len=WIDTH, seed=seed, pad=0, eos=1))


class Exact(torch.nn.Module):
    """A model as TRL's trainers call it, log-probabilities in float64 where TRL's own fused head gives float32."""

    def __init__(self, lm):
        super().__init__()
        self.lm = lm

    def forward(self, input_ids, attention_mask, labels, fused_lm_head, use_cache):
        assert fused_lm_head and not use_cache
        logits = self.lm(input_ids=input_ids, attention_mask=attention_mask).logits[:, :-1]
        used = labels[:, 1:] != -100
        log_p = logits.log_softmax(-1).gather(2, labels[:, 1:].clamp(min=0)[..., None]).squeeze(2) * used
        zero = torch.zeros_like(log_p)
        return SimpleNamespace(log_probs=log_p, label_mask=used, entropy=zero, mean_logits=zero, is_top1=used)


def ragged(seed, prompts=5):
    """Prompts of 1 to 20 tokens, each with two answers of 1 to 30; 0 and 1 (pad and end) do not occur inside."""
    rng = np.random.default_rng(seed)

    def some(most):
        return rng.integers(2, VOCABULARY, rng.integers(1, most + 1)).tolist()

    return [{"prompt_ids": some(20), "chosen_ids": some(30), "rejected_ids": some(30)} for _ in range(prompts)]


def packed(documents):
    """(prompt, answer, prompt's number, score, label) documents, first fit into rows of WIDTH, as a Batch."""
    rows: list[list] = []
    for one in documents:
        fits = [row for row in rows if sum(len(d[0]) + len(d[1]) for d in row) + len(one[0]) + len(one[1]) <= WIDTH]
        if fits:
            fits[0].append(one)
        else:
            rows.append([one])
    ids, mask = np.zeros((len(rows), WIDTH), np.int64), np.zeros((len(rows), WIDTH), bool)
    lengths = [np.array([len(d[0]) + len(d[1]) for d in row]) for row in rows]
    for number, row in enumerate(rows):
        flat = [token for d in row for token in (*d[0], *d[1])]
        ids[number, : len(flat)] = flat
        learned = [one for d in row for one in [False] * len(d[0]) + [True] * len(d[1])]
        mask[number, : len(learned)] = learned
    extra = {"ends": padded([np.cumsum(of_row) for of_row in lengths])}
    for place, name in ((2, "groups"), (3, "scores"), (4, "desirable")):
        extra[name] = padded([np.array([d[place] for d in row]) for row in rows])
    return collate(Rows(ids, lengths, mask, extra))


def pairs(examples):
    """Both answers of a prompt are neighbours, so that they come into one row."""
    out = []
    for number, one in enumerate(examples):
        out.append((one["prompt_ids"], one["chosen_ids"], number, 1.0, 2))
        out.append((one["prompt_ids"], one["rejected_ids"], number, 0.0, 1))
    return packed_pairs(out)


def packed_pairs(documents):
    # a pair that does not fit behind the others begins a row of its own
    rows, here, used = [], [], 0
    for first, second in zip(documents[::2], documents[1::2], strict=True):
        size = sum(len(d[0]) + len(d[1]) for d in (first, second))
        if used + size > WIDTH:
            rows, here, used = [*rows, here], [], 0
        here, used = [*here, first, second], used + size
    batches = [packed(row) for row in [*rows, here] if row]
    assert all(batch.rows == 1 for batch in batches)
    return batches


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """Words w2 … w299 by number, so that TRL's own tokenisation gives our ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<pad>": 0, "<eos>": 1, **{f"w{n}": n for n in range(2, VOCABULARY)}}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="<eos>")


def plain(kind, folder, **fields):
    return kind(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False,
        per_device_train_batch_size=8, disable_tqdm=True, **fields,
    )  # fmt: skip


def text(ids):
    return "".join(f" w{number}" for number in ids)


def gradient(loss, lm):
    found = torch.autograd.grad(loss, list(lm.parameters()), allow_unused=True)
    return torch.cat([
        (torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(found, lm.parameters(), strict=True)
    ])  # fmt: skip


def agree(ours, theirs, lm_ours, lm_theirs):
    """Loss and gradient, the latter relative to its largest entry."""
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-6)
    mine, other = gradient(ours, lm_ours), gradient(theirs, lm_theirs)
    assert float(other.abs().max()) > 0
    assert float((mine - other).abs().max() / other.abs().max()) < 1e-6


DPO = {
    "dpo": ("sigmoid", {}),
    "ipo": ("ipo", {}),
    "robust": ("robust", {"label_smoothing": 0.1}),
    "hinge": ("hinge", {}),
    "normalised": ("sigmoid_norm", {}),
}


class Live(Frozen):
    """A role with a gradient."""

    __call__ = Frozen.__call__.__wrapped__


def dpo_of(loss, batches, lm, reference, **fields):
    """Our loss over all micro-batches, by the code of the run."""
    chosen = Preference(loss=loss, beta=0.3, **fields)
    policy = Live(PackedLM(lm), ALONE.device, torch.float64)
    lm.requires_grad_(True)
    old = Frozen(PackedLM(reference), ALONE.device, torch.float64)
    losses = []
    for batch in batches:
        known = None if loss == "simpo" else preference.log_probabilities(old, batch)
        losses.append(preference_loss(chosen, preference.log_probabilities(policy, batch), known, batch))
    return sum(one.total for one in losses) / sum(one.count for one in losses)


@pytest.fixture(scope="module")
def dpo_trainer(tokenizer, tmp_path_factory):
    made = {}

    def get(kind, **fields):
        if kind not in made:
            some = [{"prompt": text(e["prompt_ids"]), "chosen": text(e["chosen_ids"]), "rejected": text(e["rejected_ids"])} for e in ragged(0)]  # fmt: skip  # noqa: E501
            trainer = made[kind] = trl.DPOTrainer(
                lm_of(3), lm_of(4), processing_class=tokenizer, train_dataset=Dataset.from_list(some),
                args=plain(trl.DPOConfig, tmp_path_factory.mktemp("trl"), beta=0.3, loss_type=[kind], **fields),
            )  # fmt: skip
            trainer.ref_model = Exact(lm_of(4))
        return made[kind]

    return get


@pytest.mark.parametrize("loss", DPO)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_direct_preference_is_trls(dpo_trainer, loss, seed):
    kind, fields = DPO[loss]
    trainer = dpo_trainer(kind, **fields)
    examples = ragged(seed)
    lm, other = lm_of(3), lm_of(3)
    theirs = trainer._compute_loss(Exact(other), trainer.data_collator(examples), False)
    smoothing = {"smoothing": fields["label_smoothing"]} if fields else {}
    agree(dpo_of(loss, pairs(examples), lm, lm_of(4), **smoothing), theirs, lm, other)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_conservative_dpo_is_trls_where_trl_still_smooths(dpo_trainer, seed):
    """TRL 1.16 dropped label_smoothing from its `sigmoid` loss; `aot_unpaired` on single pairs is the same formula."""
    trainer = dpo_trainer("aot_unpaired", label_smoothing=0.1)
    examples = ragged(seed)
    lm, other = lm_of(3), lm_of(3)
    each = [trainer._compute_loss(Exact(other), trainer.data_collator([one]), False) for one in examples]
    ours = dpo_of("cdpo", pairs(examples), lm, lm_of(4), smoothing=0.1)
    agree(ours, sum(each) / len(each), lm, other)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_simpo_is_trls(seed):
    """CPOTrainer.cpo_loss on mean log-probabilities, loss_type simpo, without its own NLL term (cpo_alpha 0)."""
    from trl.experimental.cpo import CPOTrainer

    examples = ragged(seed)
    lm = lm_of(3)
    lm.config._attn_implementation = "eager"
    ids, labels = [], []
    for name in ("chosen_ids", "rejected_ids"):
        for one in examples:
            whole = torch.tensor(one["prompt_ids"] + one[name])
            ids.append(whole)
            labels.append(whole.clone())
            labels[-1][: len(one["prompt_ids"])] = -100
    pad = torch.nn.utils.rnn.pad_sequence
    padded_ids, padded_labels = pad(ids, True, 0), pad(labels, True, -100)
    there = pad([torch.ones_like(one) for one in ids], True, 0)
    logits = lm(input_ids=padded_ids, attention_mask=there).logits
    logps = CPOTrainer.get_batch_logps(logits, padded_labels, average_log_prob=True)
    fields = {"alpha": 0.0, "beta": 2.0, "simpo_gamma": 0.7, "loss_type": "simpo", "label_smoothing": 0.1}
    own = SimpleNamespace(accelerator=SimpleNamespace(device="cpu"), **fields)
    theirs = CPOTrainer.cpo_loss(own, *logps.chunk(2))[0].mean()
    other = lm_of(3)
    chosen = Preference(loss="simpo", beta=2.0, target=0.7, smoothing=0.1)
    policy = Live(PackedLM(other), ALONE.device, torch.float64)
    other.requires_grad_(True)
    losses = [preference_loss(chosen, preference.log_probabilities(policy, b), None, b) for b in pairs(examples)]
    ours = sum(one.total for one in losses) / sum(one.count for one in losses)
    agree(ours, theirs, other, lm)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_kto_is_trls(kto_trainer, seed):
    """Given the same mismatched answers: TRL cycles them over its batch, we over a row (so their z may differ)."""
    rng = np.random.default_rng(seed)
    examples = [
        {"prompt_ids": e["prompt_ids"], "completion_ids": e["chosen_ids"], "label": bool(rng.integers(2))}
        for e in ragged(seed, 6)
    ]
    for number, one in enumerate(examples):
        one["KL_completion_ids"] = examples[number - 1]["completion_ids"]
    lm, other = lm_of(3), lm_of(3)
    theirs = kto_trainer._compute_loss(Exact(other), kto_trainer.data_collator(examples), False)
    policy = Live(PackedLM(lm), ALONE.device, torch.float64)
    old = Frozen(PackedLM(lm_of(4)), ALONE.device, torch.float64)
    crossed = packed([(e["prompt_ids"], e["KL_completion_ids"], n, 0.0, 0) for n, e in enumerate(examples)])
    with torch.no_grad():
        ratio = preference.log_probabilities(policy, crossed) - preference.log_probabilities(old, crossed)
    kl = max(0.0, float(ratio.sum()) / len(examples))
    assert kl == pytest.approx(kto_trainer._metrics["train"]["kl"][-1], abs=1e-6)
    lm.requires_grad_(True)
    batch = packed([(e["prompt_ids"], e["completion_ids"], n, 0.0, 1 + e["label"]) for n, e in enumerate(examples)])
    chosen = Preference(loss="kto", beta=0.3, undesirable_weight=1.5)
    values = [preference.log_probabilities(role, batch) for role in (policy, old)]
    loss = preference_loss(chosen, *values, batch, kl)
    agree(loss.total / loss.count, theirs, lm, other)


@pytest.fixture(scope="module")
def kto_trainer(tokenizer, tmp_path_factory):
    some = [
        {"prompt": text(e["prompt_ids"]), "completion": text(e["chosen_ids"]), "label": n % 2 == 0}
        for n, e in enumerate(ragged(0, 8))
    ]
    args = plain(trl.KTOConfig, tmp_path_factory.mktemp("trl"), beta=0.3, undesirable_weight=1.5)
    trainer = trl.KTOTrainer(
        lm_of(3), lm_of(4), processing_class=tokenizer, train_dataset=Dataset.from_list(some), args=args
    )
    trainer.ref_model = Exact(lm_of(4))
    return trainer


def reward_lm():
    lm = build(SHAPE, vocab_size=VOCABULARY, seq_len=WIDTH, seed=3, pad=0, eos=1)
    return exact(classifier(lm, None, 5))


@pytest.fixture(scope="module")
def reward_trainer(tokenizer, tmp_path_factory):
    some = [{"chosen": text(e["chosen_ids"]), "rejected": text(e["rejected_ids"])} for e in ragged(0, 8)]
    args = plain(trl.RewardConfig, tmp_path_factory.mktemp("trl"), center_rewards_coefficient=0.02)
    return trl.RewardTrainer(reward_lm(), processing_class=tokenizer, train_dataset=Dataset.from_list(some), args=args)


def reward_of(examples, lm, **fields):
    chosen = Reward(centring=0.02, **fields)
    losses = [
        reward_loss(chosen, PackedReward(lm)(b.input_ids, b.position_ids, b.doc_index, b.targets), b)
        for b in pairs(examples)
    ]
    return sum(one.total for one in losses) / sum(one.count for one in losses)


def whole(examples, **fields):
    return [
        {"chosen_ids": e["prompt_ids"] + e["chosen_ids"], "rejected_ids": e["prompt_ids"] + e["rejected_ids"], **fields}
        for e in examples
    ]


@pytest.mark.parametrize("margin", [0.0, 0.25])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_the_reward_loss_is_trls(reward_trainer, margin, seed):
    examples = ragged(seed)
    inputs = reward_trainer.data_collator(whole(examples, **({"margin": margin} if margin else {})))
    theirs = reward_trainer.compute_loss(reward_trainer.model, inputs)
    lm = reward_lm()
    agree(reward_of(examples, lm, margin=margin), theirs, lm, reward_trainer.model)


def test_an_answer_that_ends_in_the_pad_token_is_read_at_its_end_here_and_before_it_there(reward_trainer):
    """The one disagreement of reward models: transformers looks for the last token that is not a pad, we take ends."""
    examples = ragged(7)
    ends = [{**e, "chosen_ids": [*e["chosen_ids"], 0], "rejected_ids": [*e["rejected_ids"], 0]} for e in examples]
    assert isinstance(reward_trainer.model, LlamaForSequenceClassification)
    with torch.no_grad():
        theirs = reward_trainer.compute_loss(reward_trainer.model, reward_trainer.data_collator(whole(ends)))
        without = reward_trainer.compute_loss(reward_trainer.model, reward_trainer.data_collator(whole(examples)))
        ours = reward_of(ends, reward_lm())
    assert float(theirs) == pytest.approx(float(without), abs=1e-9)  # the last token was passed over
    assert abs(float(ours) - float(theirs)) > 1e-6


@pytest.mark.parametrize("cut", [5, 2])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_instruction_tuning_is_trls(sft_trainer, cut, seed):
    """SFTTrainer on prompt and completion, a batch of 5, or micro-batches of `cut` with TRL's num_items_in_batch."""
    examples = ragged(seed)
    number = torch.tensor(sum(len(e["chosen_ids"]) for e in examples))
    lm, other = lm_of(3), lm_of(3)
    theirs = sum(
        sft_trainer.compute_loss(Exact(other), sft_trainer.data_collator(known(examples[at : at + cut])), False, number)
        for at in range(0, len(examples), cut)
    )
    loss = response_loss_of(examples, lm)
    assert loss.count == int(number)
    agree(loss.total / loss.count, theirs, lm, other)


def known(examples):
    """As SFTTrainer prepares prompt and completion: labels are −100 on the prompt."""
    return [
        {
            "input_ids": e["prompt_ids"] + e["chosen_ids"],
            "labels": [-100] * len(e["prompt_ids"]) + e["chosen_ids"],
        }
        for e in examples
    ]


def response_loss_of(examples, lm):
    batch = packed([(e["prompt_ids"], e["chosen_ids"], 0, 0.0, 0) for e in examples])
    return sft.response_loss(PackedLM(lm)(batch.input_ids, batch.position_ids, batch.doc_index, batch.targets), batch)


def test_trl_prepares_the_labels_that_we_give_it(sft_trainer):
    examples = ragged(0, 8)
    prepared = [[w for w in row if w != 1] for row in sft_trainer.train_dataset["labels"]]  # less the end of text
    assert prepared == [one["labels"] for one in known(examples)]


def test_trls_own_head_gives_the_same_loss_in_its_float32(sft_trainer):
    """The fused head of TRL 1.16 returns float32 whatever the model is: its losses and gradients are that exact."""
    examples = ragged(11)
    number = torch.tensor(sum(len(e["chosen_ids"]) for e in examples))
    theirs = sft_trainer.compute_loss(sft_trainer.model, sft_trainer.data_collator(known(examples)), False, number)
    lm = lm_of(3)
    loss = response_loss_of(examples, lm)
    assert float((loss.total / loss.count).detach()) == pytest.approx(float(theirs.detach()), abs=1e-6)
    mine, other = gradient(loss.total / loss.count, lm), gradient(theirs, sft_trainer.model)
    assert float((mine - other).abs().max() / other.abs().max()) < 1e-6


@pytest.fixture(scope="module")
def sft_trainer(tokenizer, tmp_path_factory):
    some = [{"prompt": text(e["prompt_ids"]), "completion": text(e["chosen_ids"])} for e in ragged(0, 8)]
    args = plain(trl.SFTConfig, tmp_path_factory.mktemp("trl"), completion_only_loss=True)
    return trl.SFTTrainer(lm_of(3), processing_class=tokenizer, train_dataset=Dataset.from_list(some), args=args)


@pytest.mark.parametrize(("kind", "beta"), [("forward", 0.0), ("reverse", 1.0), ("jsd", 0.3)])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([1.0, 2.5]))
def test_distances_of_distributions_are_trls(kind, beta, seed, temperature):
    from trl.experimental.gkd import GKDTrainer

    torch.manual_seed(seed)
    student, teacher = 3 * torch.randn(2, 2, 9, 37, dtype=torch.float64)
    student.requires_grad_()
    labels = torch.randint(0, 37, (2, 9)).masked_fill(torch.rand(2, 9) < 0.4, -100)
    used = labels != -100
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, temperature)
    mine, other = (log_probabilities(one[used], temperature) for one in (student, teacher))
    ours = divergence(mine, other, kind, beta or 0.5).sum() / used.sum()
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-6)
    grads = [torch.autograd.grad(loss, student)[0] for loss in (ours, theirs)]
    assert torch.allclose(*grads, atol=1e-6)
