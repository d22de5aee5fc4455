from deploy.delegated import Delegated, Left, delegated, listed, stand_ins


def node(index: int, name: str, inputs: list[int], outputs: list[int]) -> dict:
    return {"index": index, "op_name": name, "inputs": inputs, "outputs": outputs}


#: Tensors 0 to 4 in a row, 5 aside.
CHAIN = [
    node(0, "CONV_2D", [0, 9], [1]),
    node(1, "TILE", [1], [2]),
    node(2, "CONV_2D", [2, 9], [3]),
    node(3, "ADD", [3, 3], [4]),
    node(4, "TILE", [0], [5]),
]


def test_without_a_delegate_all_is_left_by_type() -> None:
    found = delegated(CHAIN)
    assert (found.nodes, found.total, found.state) == (0, 5, "none")
    assert found.left == (Left("CONV_2D", 2), Left("TILE", 2), Left("ADD", 1))


def test_a_stand_in_counts_what_lies_between_its_inputs_and_its_outputs() -> None:
    first, second = node(5, "DELEGATE", [0, 9], [1]), node(6, "DELEGATE", [2, 9], [4])
    found = delegated([*CHAIN, first, second])
    assert (found.nodes, found.state, found.left) == (3, "part", (Left("TILE", 2),))
    assert stand_ins([*CHAIN, first]) == {5}
    assert delegated([*CHAIN, first, second], stand_ins([*CHAIN, first])).nodes == 1
    assert delegated([*CHAIN, first, second], frozenset()).state == "none"


def test_all_is_taken() -> None:
    found = delegated([*CHAIN, node(5, "DELEGATE", [0, 9], [4, 5])])
    assert (found.nodes, found.total, found.state, found.left) == (5, 5, "all", ())


def test_json_and_words_of_a_cpu() -> None:
    found = Delegated(3, 6, (Left("TILE", 2, "5 dimensions"), Left("ADD", 1)))
    assert found.as_json() == {
        "state": "part",
        "left": [
            {"op": "TILE", "count": 2, "reason": "5 dimensions"},
            {"op": "ADD", "count": 1, "reason": "unavailable"},
        ],
        "adapter": None,
        "software": None,
    }
    assert str(found) == "3 of 6 nodes; left: TILE x2 (5 dimensions), ADD"
    assert listed(found.left) == "TILE x2 (5 dimensions), ADD"


def test_json_and_words_of_a_gpu() -> None:
    known = Delegated(4, 4, adapter="Some GPU", software=False)
    assert (known.as_json()["adapter"], known.as_json()["software"]) == ("Some GPU", False)
    assert str(known) == "4 of 4 nodes on Some GPU"
    assert str(Delegated(4, 4, adapter="llvmpipe", software=True)) == "4 of 4 nodes on llvmpipe (software)"
    assert Delegated(4, 4, adapter="unavailable").as_json()["software"] == "unavailable"
