"""Engine profiles as files."""

from dataclasses import replace
from pathlib import Path

import pytest

from node.errors import SettingsError
from node.simulate.profiles import (
    find_profile,
    profiles_dir,
    read_profile,
    shipped_profiles,
    write_profile,
    write_whole,
)


@pytest.mark.parametrize("name", ["gpu-small", "gpu-medium", "gpu-large"])
def test_shipped_profiles_say_where_they_come_from(name: str) -> None:
    profile = find_profile(name)
    assert profile.name == name
    assert "Derived" in profile.source
    assert profile.context_tokens <= profile.kv_tokens


def test_a_larger_card_is_faster_and_holds_more() -> None:
    small, medium, large = (find_profile(name) for name in ("gpu-small", "gpu-medium", "gpu-large"))
    assert small.step.base_s > medium.step.base_s > large.step.base_s
    assert small.step.per_prefill_token_s > medium.step.per_prefill_token_s > large.step.per_prefill_token_s
    assert small.kv_tokens < medium.kv_tokens < large.kv_tokens


def test_every_shipped_profile_can_be_read_under_its_name() -> None:
    assert {"gpu-small", "gpu-medium", "gpu-large"} <= set(shipped_profiles())
    for name in shipped_profiles():
        assert find_profile(name).name == name


def test_what_is_written_reads_back_the_same(tmp_path: Path) -> None:
    profile = find_profile("gpu-medium")
    path = tmp_path / "mine.json"
    write_profile(path, profile)
    assert read_profile(path) == profile
    assert find_profile(str(path)) == profile
    assert [each.name for each in tmp_path.iterdir()] == ["mine.json"]


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"gpu-huge.*not known.*gpu-large, gpu-medium, gpu-small"):
        find_profile("gpu-huge")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"max_sequences": 256', '"max_sequences": 0', "max_sequences: "),
        ('"max_sequences": 256', '"max_sequences": "256"', "max_sequences: Expected `int`, got `str`"),
        ('"max_sequences": 256', '"max_sequenzes": 256', "unknown field `max_sequenzes`"),
        ('"base_s": 0.0252', '"base_s": 0', "step.base_s: "),
        ('"per_decode_s": 0.000204', '"per_decode_s": -1', "step.per_decode_s: "),
        ('  "name": "gpu-medium",\n', "", "missing required field `name`"),
        ('"context_tokens": 131072', '"context_tokens": 999999', "context_tokens: more than the 191802"),
        ("{", "[", "Expected `object`, got `array`"),
        ('"step": {', '"step" {', "not JSON"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    content = (profiles_dir() / "gpu-medium.json").read_text()
    path = tmp_path / "bad.json"
    assert old in content
    path.write_text(content.replace(old, new, 1))
    with pytest.raises(SettingsError) as caught:
        read_profile(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert said in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_that_is_not_there_is_one_line() -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.json: cannot be read"):
        find_profile("nowhere.json")


def test_nothing_is_left_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(SettingsError, match="not a file"):
        write_whole(tmp_path / "taken", b"x")
    with pytest.raises(SettingsError, match="cannot be written"):
        write_whole(tmp_path / "none" / "x.json", b"x")
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]


def test_terms_beyond_the_first_three_are_read_back_and_default_to_none(tmp_path: Path) -> None:
    large = find_profile("gpu-large")
    assert (large.steps_ahead, large.step.per_kv_token_s, large.step.per_prefill_pair_s) == (1, 0.0, 0.0)
    step = replace(large.step, per_kv_token_s=2e-7, per_prefill_pair_s=1e-8)
    write_profile(tmp_path / "more.json", replace(large, step=step, steps_ahead=1))
    assert read_profile(tmp_path / "more.json") == replace(large, step=step, steps_ahead=1)
