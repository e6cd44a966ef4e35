"""generate --batch-file --output: answers are appended as they end, and an interrupted batch goes on."""

from __future__ import annotations

import fcntl
import json
import os
import random
import subprocess
import time
from pathlib import Path

import pytest

import endor_jax as endor
from tests.cli.conftest import COMMAND, NEVER_ENDING
from tests.tiny_models import write_tiny

KILLS = int(os.environ.get("ENDOR_TEST_BATCH_KILLS", "1"))
"""How often a batch is killed before it may end."""
TEARS = int(os.environ.get("ENDOR_TEST_BATCH_TEARS", "1"))
"""At how many places, beside the special ones, the file is cut off."""
PROMPTS = [{"prompt": "Hello", "id": f"é{i}"} for i in range(3)] + [{"prompt": "x" * i} for i in (1, 20, 7)]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """In float32, where a batch of other prompts rounds no choice round."""
    base = tmp_path_factory.mktemp("batch_output")
    endor.convert(write_tiny(base / "source", NEVER_ENDING, tokenizer=True), base / "dst")
    return base / "dst"


@pytest.fixture(scope="module")
def batch_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in PROMPTS))
    return path


@pytest.fixture
def generate(run_command, model, batch_file, tmp_path):
    """Runs the batch into a file of that name."""

    def run(*options, prompts=batch_file, into="out.jsonl", path=model):
        arguments = ("--batch-file", prompts, "--batch-size", 2, "--max-tokens", 5, "--context", 128)
        return run_command("generate", path, *arguments, "--output", tmp_path / into, *options)

    return run


@pytest.fixture(scope="module")
def whole(run_command, model, batch_file, tmp_path_factory) -> bytes:
    """What an uninterrupted run writes."""
    path = tmp_path_factory.mktemp("whole") / "out.jsonl"
    arguments = ("--batch-file", batch_file, "--batch-size", 2, "--max-tokens", 5, "--context", 128)
    done = run_command("generate", model, *arguments, "--output", path)
    assert (done.code, done.stdout) == (0, "")
    printed = run_command("generate", model, *arguments).stdout.splitlines()
    answers = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert all(next(iter(answer)) == "key" for answer in answers)
    bare = [{name: value for name, value in answer.items() if name != "key"} for answer in answers]
    assert sorted(map(str, bare)) == sorted(str(json.loads(line)) for line in printed)
    return path.read_bytes()


def lines(data: bytes) -> list[bytes]:
    return sorted(data.splitlines())


def test_wherever_a_file_was_cut_off_the_rest_is_generated(generate, whole, tmp_path):
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    places = {0, 1, ends[1] - 1, ends[2] + 3, len(whole)}
    places |= {random.Random(0).randrange(len(whole)) for _ in range(TEARS)}
    for place in sorted(places):
        (tmp_path / "out.jsonl").write_bytes(whole[:place])
        done = generate("--json", "-q")
        assert done.code == 0, done.stderr
        made = (tmp_path / "out.jsonl").read_bytes()
        kept = sum(end <= place for end in ends)
        assert made[: ends[kept - 1] if kept else 0] == whole[: ends[kept - 1] if kept else 0]
        assert lines(made) == lines(whole)
        result = json.loads(done.stdout)
        assert [answer["id"] for answer in result["completions"]] == ["é0", "é1", "é2", 4, 5, 6]
        assert (result["prompt_tokens"] > 0) == (kept < len(PROMPTS))


def test_killed_again_and_again_it_ends_like_an_uninterrupted_run(model, batch_file, whole, tmp_path):
    path = tmp_path / "out.jsonl"
    arguments = ("--batch-file", batch_file, "--batch-size", 2, "--max-tokens", 5, "--context", 128)
    command = [*COMMAND, "generate", model, *arguments, "--output", path]
    for kill in range(KILLS):
        before = len(lines(path.read_bytes())) if path.exists() else 0
        with subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL) as process:
            wanted = before + 1 + kill % 2
            while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < wanted):
                time.sleep(0.002)
            process.kill()
        assert process.returncode in (-9, 0)
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert "answers are there already" in done.stderr
    assert lines(path.read_bytes()) == lines(whole)


def test_two_prompts_of_the_same_id_and_text_have_an_answer_each(generate, tmp_path):
    prompts = tmp_path / "same.jsonl"
    prompts.write_text('{"id": 1, "prompt": "a"}\n' * 3)
    assert generate(prompts=prompts).code == 0
    first, *_ = (tmp_path / "out.jsonl").read_bytes().splitlines(keepends=True)
    assert (tmp_path / "out.jsonl").read_bytes() == 3 * first
    (tmp_path / "out.jsonl").write_bytes(2 * first)
    assert generate(prompts=prompts).code == 0
    assert (tmp_path / "out.jsonl").read_bytes() == 3 * first
    (tmp_path / "out.jsonl").write_bytes(4 * first)
    refused = generate(prompts=prompts)
    assert refused.code == 1
    assert "line 4: got an answer to id 1 more often than it is asked for" in refused.stderr


def test_answers_of_something_else_are_refused_by_name_and_kept(generate, run_command, whole, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(whole)
    other_prompts = tmp_path / "other.jsonl"
    other_prompts.write_text("\n".join(json.dumps(line | {"prompt": "y"}) for line in PROMPTS))
    other_ids = tmp_path / "ids.jsonl"
    other_ids.write_text("\n".join(json.dumps(line | {"id": 70}) for line in PROMPTS))
    source = write_tiny(tmp_path / "source", NEVER_ENDING, tokenizer=True, seed=1)
    endor.convert(source, tmp_path / "dst")
    for done, message in (
        (generate("--max-tokens", 6), "from other settings"),
        (generate("--stop", "q", prompts=other_prompts), "from another prompt and other settings"),
        (generate(prompts=other_prompts), "from another prompt"),
        (
            generate(prompts=other_prompts, path=tmp_path / "dst"),
            "from another prompt and another checkpoint",
        ),
        (generate(path=tmp_path / "dst"), "from another checkpoint"),
        (generate(prompts=other_ids), "that nobody asks for"),
    ):
        assert done.code == 1
        assert f"output {path}, line 1: got an answer to id " in done.stderr
        assert f"{message}, expected answers of this batch; go on as it was begun" in done.stderr
        assert done.stderr.count("\n") == 1
    assert path.read_bytes() == whole
    # What does not change the answers does not matter.
    assert generate("--batch-size", 3, "--micro-batch", 1).code == 0
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"precious", "a last line that is no answer"),
        (b'{"id": 1, "prompt": "a"}', "a last line that is no answer"),
        (b"precious\n", "line 1 that is no answer"),
        (b"\n", "line 1 that is no answer"),
        (b'{"prompt": "a"}\n', "line 1 that is no answer"),
        (b'{"key": "a"}\n', "line 1 that is no answer"),
        (b'{"key": "a", "id"\n', "line 1 that is no answer"),
        (b'{"key": "a", "id": 1}\n', "an answer to id 1 that nobody asks for"),
        (b'{"key": "a", "id": "\xc3\xa90"}\n{"key', 'an answer to id "é0" that nobody asks for'),
    ],
)
def test_other_peoples_files_are_left_alone(generate, tmp_path, content, message):
    (tmp_path / "out.jsonl").write_bytes(content)
    done = generate()
    assert done.code == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "out.jsonl").read_bytes() == content


def test_no_resume_wants_a_new_file(generate, whole, tmp_path):
    assert generate("--no-resume").code == 0
    refused = generate("--no-resume")
    assert refused.code == 1
    assert "got a file that exists, expected a path where nothing is yet" in refused.stderr
    assert lines((tmp_path / "out.jsonl").read_bytes()) == lines(whole)


def test_places_that_cannot_be_written_to(generate, run_command, model, tmp_path):
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("directory", "pipe"):
        done = generate(into=name)
        assert done.code == 1
        assert "got something that is no file" in done.stderr
    assert "No such file" in generate(into="nowhere/out").stderr
    with open(tmp_path / "out.jsonl", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "got another process writing there" in generate().stderr
    done = run_command("generate", model, "-p", "a", "--output", tmp_path / "out.jsonl")
    assert done.code == 2
    assert "got --output and --prompt, expected --batch-file" in done.stderr
