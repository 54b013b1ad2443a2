import torch

from trainers import model
from trainers.batch import PackedRows
from trainers.evaluate.held_out import HeldOut, token_bytes
from trainers.model import ModelSettings, PackedLM
from trainers.ranks import Ranks
from trainers.roles import Frozen


def test_token_bytes_are_the_bytes_of_the_text(packed):
    from transformers import AutoTokenizer

    sizes = token_bytes(PackedRows(str(packed)))
    tokenizer = AutoTokenizer.from_pretrained(packed / "tokenizer")
    text = "the cat — sat; naïve 你好"
    assert int(sizes[tokenizer(text).input_ids].sum()) == len(text.encode())
    assert sizes[tokenizer.eos_token_id] == 0


def test_bits_per_byte_and_loss_are_their_definitions_on_any_number_of_ranks(packed):
    data = PackedRows(str(packed), "validation")
    lm = model.build(ModelSettings(hidden_size=32, layers=1, heads=2), vocab_size=300, seq_len=64, seed=0, pad=0, eos=1)
    role = Frozen(PackedLM(lm), torch.device("cpu"), torch.float64)
    alone = HeldOut(data, rows=10, micro_rows=3, ranks=Ranks(0, 1, torch.device("cpu")))
    loss, bits = alone.measure(role)[""]
    sizes = token_bytes(data)
    rows = data.read(0, 10)
    nll, count, size = 0.0, 0, 0
    for ids, lengths in zip(rows.input_ids, rows.doc_lengths, strict=True):
        start = 0
        for length in lengths:
            document = torch.from_numpy(ids[start : start + length])[None]
            start += length
            plain = model.build(
                ModelSettings(hidden_size=32, layers=1, heads=2), vocab_size=300, seq_len=64, seed=0, pad=0, eos=1
            ).double()
            with torch.no_grad():
                logits = plain(input_ids=document).logits[0, :-1]
            nll += float(torch.nn.functional.cross_entropy(logits, document[0, 1:], reduction="sum"))
            count += int(length) - 1
            size += int(sizes[document[0, 1:]].sum())
    torch.testing.assert_close(loss, nll / count, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        bits, nll / size / torch.log(torch.tensor(2.0, dtype=torch.float64)).item(), rtol=1e-9, atol=0
    )
