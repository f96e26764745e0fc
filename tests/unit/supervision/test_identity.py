import pytest
import torch

from vlalign.supervision.targets.identity import Identity

ROW, CAPTION, CONCEPT = [1, 2, 3, 4], [10, 11, 10, 12], [20, 20, 21, 22]


def relevance(*same: str) -> torch.Tensor:
    fields = {"row": torch.tensor(ROW), "caption": torch.tensor(CAPTION), "concept": torch.tensor(CONCEPT)}
    targets = Identity(same=same)
    query = {name: fields[name][:, None] for name in targets.query_fields}
    key = {name: fields[name][None] for name in targets.key_fields}
    return targets.tile(query, key)


@pytest.mark.parametrize("same", [("row",), ("caption",), ("concept",), ("row", "caption", "concept"), ()])
def test_equals_a_loop(same):
    values = {"row": ROW, "caption": CAPTION, "concept": CONCEPT}
    found = relevance(*same)
    for query in range(4):
        for key in range(4):
            match = any(values[name][query] == values[name][key] for name in same)
            assert bool(found[query, key]) == (match or query == key)


def test_the_default_is_the_row_alone():
    assert torch.equal(relevance("row"), torch.eye(4).bool())
    assert Identity().query_fields == Identity().key_fields == ("row",)


def test_a_field_is_named_once():
    with pytest.raises(ValueError, match="same names a field twice: caption, caption"):
        Identity(same=("caption", "caption"))


def test_any_label_field_can_be_named():
    targets = Identity(same=("subclass",))
    assert targets.query_fields == targets.key_fields == ("row", "subclass")
    query = {"row": torch.tensor([[1], [2]]), "subclass": torch.tensor([[7], [8]])}
    key = {"row": torch.tensor([[1, 2, 3]]), "subclass": torch.tensor([[7, 8, 7]])}
    assert targets.tile(query, key).tolist() == [[True, False, True], [False, True, False]]
