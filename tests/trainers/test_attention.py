import pytest
import torch

from cluster.errors import RecipeError
from trainers import attention


@pytest.mark.parametrize("width", [512, 500])
def test_the_block_mask_of_flex_is_the_dense_mask(width):
    from torch.nn.attention.flex_attention import create_mask

    generator = torch.Generator().manual_seed(1)
    borders = torch.rand((4, width), generator=generator) < torch.tensor([0.0, 0.002, 0.01, 0.2])[:, None]
    borders[0, 128] = borders[1, 127] = True
    doc_index = borders.cumsum(1).to(torch.int32)
    dense = attention.documents_mask(doc_index, "sdpa")
    blocks = attention.documents_mask(doc_index, "flex")
    assert torch.equal(create_mask(blocks.mask_mod, 4, 1, width, width, device="cpu"), dense)
    full, some = _whole_blocks(blocks)
    size = attention.BLOCK
    padded = torch.zeros((4, 4 * size, 4 * size), dtype=torch.bool)
    padded[:, :width, :width] = dense[:, 0]
    tiles = padded.reshape(4, 4, size, 4, size).transpose(2, 3).reshape(4, 4, 4, -1)
    assert torch.equal(full | some, tiles.any(-1))
    assert (tiles.all(-1) | ~full).all()
    if width == 512:
        assert torch.equal(full, tiles.all(-1))


def _whole_blocks(mask):
    """(full, partial) as bool [rows, queries, keys]."""
    found = []
    for number, index in (
        (mask.full_kv_num_blocks, mask.full_kv_indices),
        (mask.kv_num_blocks, mask.kv_indices),
    ):
        rows, _, queries, keys = index.shape
        dense = torch.zeros((rows, queries, keys), dtype=torch.bool)
        for row in range(rows):
            for query in range(queries):
                dense[row, query, index[row, 0, query, : number[row, 0, query]].long()] = True
        found.append(dense)
    return found


def test_document_starts_are_where_the_index_changes_and_rows_begin():
    index = torch.tensor([[0, 0, 1, 1], [0, 1, 2, 2]])
    starts = attention.document_starts(index)
    assert starts.tolist() == [0, 2, 4, 5, 6] + [8] * 60
    many = torch.arange(100)[None]
    assert attention.document_starts(many).tolist() == list(range(100)) + [100] * 29


def test_kernels_that_a_device_lacks_are_refused():
    for wanted in ("varlen", "flex"):
        with pytest.raises(RecipeError, match=f"attention: {wanted}"):
            attention.pick_attention(torch.device("cpu"), wanted)
    assert attention.pick_attention(torch.device("cpu")) == "sdpa"
    with pytest.raises(RecipeError, match="reward models and students take flex"):
        attention.masked_attention(torch.device("cuda"), "varlen")
    assert attention.masked_attention(torch.device("cuda")) == "flex"
