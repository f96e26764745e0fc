"""What is asked of an endpoint arrives whole, and what it says is measured as by hand, or not at all."""

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from tests.judge_server import EXPECTED, ITEMS, RATE, endpoint, measured, prompt, serving, top
from vlalign.infer.questions import likert, yes_no
from vlalign.types import BadRow, Item, UserError


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch) as own:
        yield own


def test_yes_no_equals_a_naive_computation_over_real_sockets(server):
    found, error = measured(endpoint(server.url).build())
    assert error is None and found == pytest.approx(EXPECTED, abs=1e-12) and len(set(found.values())) == 12
    body = server.requests[0][1]
    assert (body["max_tokens"], body["temperature"], body["logprobs"], body["top_logprobs"]) == (
        1,
        0,
        True,
        20,
    )


def test_likert_equals_a_naive_expectation(server):
    rated = [("3", -1.0), (" 4", -1.2), ("4", -2.5), ("1", -4.0), ("The", -4.5), ("9", -5.0), ("12", -6.0)]
    p = {"3": math.exp(-1.0), "4": math.exp(-1.2) + math.exp(-2.5), "1": math.exp(-4.0)}
    expected = sum(int(digit) * each for digit, each in p.items()) / sum(p.values())
    server.answer = lambda candidate: rated
    found, _ = measured(endpoint(server.url, answers="likert", prompt=prompt(system=RATE)).build(), ITEMS[:1])
    assert found == {0: pytest.approx(expected, abs=1e-12)}
    assert likert([(digit, math.log(0.2)) for digit in "12345"]) == pytest.approx(3.0)
    assert likert([("5", -1e-9), ("the", -30.0)]) == 5.0
    assert likert([("2", -900.0), ("4", -900.0), ("the", -990.0)]) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ([], UserError),
        ([("Yes", -0.1)], UserError),
        ([("Yes", float("nan")), ("No", float("nan"))], UserError),
        ([("The", -0.1), ("I", -3.0)], BadRow),
        ([("<think>", -0.0001), ("Yesterday", -12.0)], BadRow),
        ([("The", -0.1), ("Yes", -9.0)], BadRow),
    ],
    ids=["nothing", "one_token", "nan", "other_words", "thinks", "yes_as_the_least"],
)
@pytest.mark.parametrize("answers", ["yes_no", "likert"])
def test_an_answer_that_says_nothing_is_no_number(server, told, kind, answers):
    swapped = {"Yes": "4", "No": "2"} if answers == "likert" else {}
    odd = [(swapped.get(token, token), each) for token, each in told]
    usual = [("4", -1.0), ("No", -1.0), ("Yes", -2.0), ("a", -7.0)]
    server.answer = lambda candidate: odd if candidate == "d0" else usual
    spec = endpoint(server.url, answers=answers, prompt=prompt(system=RATE), concurrency=1)
    found, error = measured(spec.build(), ITEMS[:3])
    number = 4.0 if answers == "likert" else -1.0
    assert found == pytest.approx({1: number, 2: number}, abs=1e-12)
    assert type(error) is kind and "1 of 3" in str(error)
    if kind is BadRow:
        assert error.reason == "no_answer" and repr(odd[0][0].lower()) in str(error)


def test_a_word_that_is_not_told_counts_as_the_least_told_token_and_is_a_bound():
    told = [("yes", -0.1), ("the", -3.0), ("a", -8.0)]
    assert yes_no(told, "yes", "no") == pytest.approx(7.9)
    assert yes_no([("no" if w == "yes" else w, each) for w, each in told], "yes", "no") == pytest.approx(-7.9)
    for hidden in (-8.0, -9.0, -20.0):  # what it may be in truth
        assert yes_no([*told, ("no", hidden)], "yes", "no") >= yes_no(told, "yes", "no")


def test_a_word_of_several_tokens_is_no_measurement_rather_than_the_least():
    told = [("ir", -0.1), ("relevant", -3.0), ("a", -8.0)]
    with pytest.raises(BadRow, match="'ir'"):
        yes_no(told, "relevant", "irrelevant")


def test_words_are_those_of_the_prompt_whatever_their_case_and_space(server):
    server.answer = lambda candidate: [
        ("\u2581TRUE", -0.5),
        ("\u0120False", -1.5),
        ("True\n", -2.0),
        ("x", -9.0),
    ]
    found, _ = measured(endpoint(server.url, prompt=prompt(yes="True", no="False")).build(), ITEMS[:1])
    assert found == {0: pytest.approx(math.log(math.exp(-0.5) + math.exp(-2.0)) + 1.5)}


def test_a_probability_too_low_to_be_told_is_not_told(server):
    server.answer = lambda candidate: [("Yes", -0.1), ("a", -6.0), ("No", -9999.0), ("b", float("-inf"))]
    assert measured(endpoint(server.url).build(), ITEMS[:1])[0] == {0: pytest.approx(5.9)}


def shown(url):
    kind, _, data = url.removeprefix("data:image/").partition(";base64,")
    raw = base64.b64decode(data, validate=True)
    picture = Image.open(io.BytesIO(raw))
    picture.load()
    assert picture.format.lower() == kind
    return picture


def test_pictures_arrive_decodable_each_at_its_place(server, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    colours = [Image.fromarray(noise), Image.new("RGBA", (4, 4), (255, 0, 0, 0)), Image.new("L", (3, 5), 80)]
    colours[0].save(tmp_path / "plain.jpg")
    colours[0].save(
        tmp_path / "turned.jpg",
        exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0",
    )
    colours[0].save(tmp_path / "other.webp", lossless=True)
    query = Item(text="q", images=(colours[0],))
    names = ("plain.jpg", "turned.jpg", "other.webp")
    items = [
        Item(text="d1", images=(tmp_path / names[0], colours[1], colours[2])),
        Item(text="d2", images=(str(tmp_path / names[1]), tmp_path / names[2])),
        Item(text="d3"),
    ]
    spec = endpoint(server.url, prompt=prompt("A {query}\n{document}", system="S"), concurrency=1)
    found, error = measured(spec.build(), items, query)
    assert error is None and len(found) == 3
    contents = [body["messages"] for _, body in server.requests]
    assert all(each[0] == {"role": "system", "content": "S"} and len(each) == 2 for each in contents)
    contents = [each[1]["content"] for each in contents]
    kinds = [[part.get("text", "picture") for part in each] for each in contents]
    assert kinds == [
        ["A ", "picture", "q\n", "picture", "picture", "picture", "d1"],
        ["A ", "picture", "q\n", "picture", "picture", "d2"],
        ["A ", "picture", "q\nd3"],
    ]
    one, two, _ = ([shown(p["image_url"]["url"]) for p in each if "image_url" in p] for each in contents)
    assert np.array_equal(np.asarray(one[0]), noise)
    assert np.array_equal(np.asarray(one[1]), np.asarray(Image.open(tmp_path / "plain.jpg")))
    assert one[2].getpixel((0, 0)) == (255, 255, 255) and one[3].size == (3, 5)
    assert two[1].size == (9, 7) and two[1].getexif().get(0x0112, 1) == 1
    assert np.array_equal(np.asarray(two[2]), noise)


def test_a_picture_that_cannot_be_read_is_a_bad_row_of_which_the_others_keep_their_scores(server, tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    items = [
        *ITEMS[:3],
        Item(images=(tmp_path / "cut.png",)),
        Item(images=(tmp_path / "none.png",)),
        Item(images=(3,)),
    ]
    found, error = measured(endpoint(server.url).build(), items)
    assert sorted(found) == [0, 1, 2] and isinstance(error, BadRow) and "3 of 6" in str(error)


def test_words_are_sent_as_they_are_and_only_the_prompts_own_places_are_filled(server):
    odd = "{query} {document} {instruction} \u2603 \ud83d"
    server.answer = lambda candidate: top("d0")
    judge = endpoint(
        server.url, prompt=prompt("{instruction}{query}\n{document}", instruction="Do. ")
    ).build()
    assert measured(judge, [Item(text=odd)], Item(text="{document}"))[1] is None
    content = server.requests[0][1]["messages"][0]["content"]
    assert content == "Do. {document}\n{query} {document} {instruction} \u2603 ?"
