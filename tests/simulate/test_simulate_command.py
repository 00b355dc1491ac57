"""`spillway simulate` and `spillway trace`, run in this process."""

import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from node.cli import main
from node.simulate.trace import read_trace

FEW = ["--policy", "overflow", "--policy", "depth:4", "--policy", "cloud"]
SHORT = ["simulate", "poisson", "--seconds", "20", "--load", "1.5", "--pinned-share", "0.2", *FEW]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a refused command says."""
    assert main(list(arguments)) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("spillway: ")
    assert said.err.count("\n") == 1
    return said.err


def test_a_table_of_policies_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SHORT) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert "load 1.50 on gpu-medium" in lines[0]
    header = next(line for line in lines if line.startswith("policy"))
    for column in ("in budget", "pinned in", "cloud", "spend $", "x bound", "p99 s", "engine busy"):
        assert column in header
    assert [line.split()[0] for line in lines[lines.index(header) + 1 :]] == ["overflow", "depth:4", "cloud"]
    assert said.err == ""  # not a terminal: no progress


def test_the_same_seed_gives_the_same_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--seed", "3"]) == 0
    once = capsys.readouterr().out
    assert main([*SHORT, "--seed", "3"]) == 0
    assert capsys.readouterr().out == once
    assert main([*SHORT, "--seed", "4"]) == 0
    assert capsys.readouterr().out != once


def test_json_holds_what_the_table_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy")
    path = tmp_path / "figures.json"
    assert main([*SHORT, "--bound", "--prices", "1,4", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document["trace"]["offered_load"] == pytest.approx(1.5)
    assert document["provider"]["output_usd_per_mtok"] == 4
    by_name = {each["policy"]: each for each in document["policies"]}
    assert list(by_name) == ["overflow", "depth:4", "cloud"]
    bound = document["bound"]
    assert by_name["cloud"]["spend_usd"] == pytest.approx(bound["all_cloud_usd"])
    assert by_name["cloud"]["over_bound"] == pytest.approx(bound["all_cloud_usd"] / bound["spend_usd"])
    for each in by_name.values():
        assert each["spend_usd"] >= each["bound_allowing_late_usd"]
        assert sum(each["arrivals_local"]) + sum(each["arrivals_cloud"]) == document["trace"]["requests"]
    assert [each.name for each in tmp_path.iterdir()] == ["figures.json"]


class Page(HTMLParser):
    """Counts what is opened, and refuses what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_no_other_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, path = tmp_path / "a<b>&c.csv", tmp_path / "page.html"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{k / 9},900,40\n" for k in range(200)))
    assert main(["simulate", str(trace), "--html", str(path), *FEW]) == 0
    content = path.read_text()
    page = Page()
    page.feed(content)
    assert page.open == []
    assert page.count["svg"] == 3 + 3  # and a sample of each line, in words beside it
    assert page.count["polygon"] == 2 * 3
    assert page.count["polyline"] == 3
    assert page.links == []
    assert not re.search(r"https?:|@import|url\(|<script", content)
    assert "prefers-color-scheme:dark" in content
    assert "a<b>" not in content
    assert "a&lt;b&gt;&amp;c.csv" in content


def test_the_page_says_in_words_what_its_pictures_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "page.html"
    assert main([*SHORT, "--html", str(path)]) == 0
    content = path.read_text()
    said = re.findall(r'role="img" aria-label="([^"]*)"', content)
    assert len(said) == 3
    for each in said:
        assert [part.partition(": ")[0] for part in each.split("; ")] == ["overflow", "depth:4", "cloud"]
    assert content.count('scope="row"') == 3
    assert '<html lang="en">' in content


def test_the_page_of_a_single_request_that_cost_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, path = tmp_path / "one.csv", tmp_path / "page.html"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n5,900,40\n")
    assert main(["simulate", str(trace), "--policy", "overflow", "--html", str(path)]) == 0
    assert "1 request in 0 s, speed 1, all at once" in capsys.readouterr().out
    page = Page()
    page.feed(content := path.read_text())
    assert page.open == []
    assert "Nothing was spent." in content
    assert not re.search("nan|inf[^o]", re.sub("<style>.*</style>", "", content, flags=re.DOTALL))


def test_prompts_longer_than_the_context_are_cut_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "long.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,90000,10\n1,10,10\n2,80000,10\n")
    assert main(["simulate", str(trace), "--profile", "gpu-small", "--policy", "cloud"]) == 0
    assert "cut to fit 16,384 tokens of context: 2 requests" in capsys.readouterr().out


def test_a_request_alone_is_a_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "one.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n5,100,10\n")
    assert (
        main(["simulate", str(trace), "--html", str(tmp_path / "one.html"), "--json", str(tmp_path / "one.json")]) == 0
    )
    assert json.loads((tmp_path / "one.json").read_text())["trace"]["offered_load"] is None
    assert "no speed gives load 2" in refused(capsys_after(capsys), "simulate", str(trace), "--load", "2")


def capsys_after(capsys: pytest.CaptureFixture[str]) -> pytest.CaptureFixture[str]:
    """The same, what was said so far forgotten."""
    capsys.readouterr()
    return capsys


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.csv"], "nowhere.csv: neither a file nor a kind of workload"),
        (["poisson", "--policy", "depths:3"], "policy 'depths:3': not known; there are overflow"),
        (["poisson", "--prices", "gpt-9"], "--prices 'gpt-9': no such price; there are holysheep/"),
        (["poisson", "--prices", "gpt-4.1"], "several have it: holysheep/gpt-4.1, openai/gpt-4.1"),
        (["poisson", "--prices", "1,x"], "expected INPUT,OUTPUT"),
        (["poisson", "--prices", "1,-2"], "from 0 to 1000000"),
        (["poisson", "--profile", "gpu-huge"], "profile 'gpu-huge': not known"),
        (["poisson", "--load", "0"], "--load: expected a number above 0, got '0'"),
        (["poisson", "--speed", "nan"], "--speed: expected a number above 0"),
        (["poisson", "--ttft-budget-ms", "soon"], "--ttft-budget-ms: expected a number above 0"),
        (["poisson", "--pinned-share", "1.5"], "--pinned-share: expected a number from 0 on, at most 1"),
        (["poisson", "--provider-sigma", "-1"], "--provider-sigma: "),
        (["poisson", "--seed", "-1"], "--seed: expected a whole number"),
        (["poisson", "--json", "no/such/folder.json"], "no/such/folder.json: cannot be written"),
        (["poisson", "--html", "."], "cannot be written: not a file"),
    ],
)
def test_bad_options_are_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, "simulate", *arguments)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "empty"),
        ("when,what\n1,2\n", "unknown format"),
        ("arrival_s,prompt_tokens,output_tokens\n", "no requests"),
        ("arrival_s,prompt_tokens,output_tokens\n1,5,5\n0,5,5\n", "line 3, arrival_s: not sorted"),
        ("arrival_s,prompt_tokens,output_tokens\n-1,5,5\n", "line 2, arrival_s"),
        ("arrival_s,prompt_tokens,output_tokens\n1,0,5\n", "line 2, prompt_tokens: zero tokens"),
    ],
)
def test_bad_traces_are_one_line_and_leave_nothing(
    content: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(content)
    page = tmp_path / "page.html"
    assert said in refused(capsys, "simulate", str(trace), "--html", str(page))
    assert said in refused(capsys, "trace", "convert", str(trace), str(tmp_path / "out.csv"))
    assert [each.name for each in tmp_path.iterdir()] == ["trace.csv"]


def test_more_requests_than_fit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.simulate.question._MOST_REQUESTS", 10)
    assert "more than 10 requests" in refused(capsys, "simulate", "poisson")


def test_generate_then_convert_then_simulate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, part = tmp_path / "made.csv", tmp_path / "part.csv.gz"
    assert main(["trace", "generate", "batch_tenants", "--seconds", "60", "--seed", "1", "-o", str(made)]) == 0
    arguments = ["--from-s", "10", "--seconds", "20", "--context", "1000"]
    assert main(["trace", "convert", str(made), str(part), *arguments]) == 0
    assert "from spillway" in capsys.readouterr().out
    requests = list(read_trace(part))
    assert 0 < len(requests) < len(list(read_trace(made)))
    assert max(each.prompt_tokens + each.output_tokens for each in requests) <= 1000
    assert gzip.decompress(part.read_bytes()).startswith(b"arrival_s,")
    assert main(["simulate", str(part), "--policy", "local"]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "weekly", "-o", "x.csv"], "weekly: not a kind of workload; there are azure_code"),
        (["generate", "poisson", "--seconds", "0", "-o", "x.csv"], "--seconds: expected a number above 0"),
        (["generate", "poisson", "-o", "no/such/x.csv"], "no/such/x.csv: cannot be written"),
        (["convert", "nowhere.csv", "x.csv"], "nowhere.csv: cannot be read"),
    ],
)
def test_bad_traces_commands_are_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(capsys, "trace", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["simulate"], ["trace"], ["trace", "convert"], ["trace", "generate"]])
def test_help_is_there(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    assert "usage: spillway" in capsys.readouterr().out


def test_a_trace_is_found_in_the_folder_of_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "generate", "poisson", "--seconds", "5", "-o", str(tmp_path / "calm.csv.gz")]) == 0
    assert main(["simulate", "calm", "--traces", str(tmp_path), "--policy", "local"]) == 0
    assert "calm: " in capsys.readouterr().out


def test_what_is_not_in_the_folder_of_traces_is_refused_naming_what_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "calm.csv").write_text("")
    assert f"{tmp_path}: no trace 'poisson'; there are calm.csv" in refused(
        capsys, "simulate", "poisson", "--traces", str(tmp_path)
    )
    assert "--traces" in refused(capsys, "simulate", "poisson", "--traces", str(tmp_path / "nowhere"))


NEAR_AND_FAR = ["--provider", "gpu-2 zone=premises weight=2", "--provider", "far ttft-ms=400 prices=1,4"]


def test_several_providers_are_described_and_who_was_sent_where_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    assert main([*SHORT, *NEAR_AND_FAR, "--json", str(path)]) == 0
    said = capsys.readouterr().out
    assert "gpu-2 (premises, weight 2): TTFT: median 0.35 s, sigma 0.35; price: $0/0 per million tokens" in said
    assert "far (cloud, weight 1): TTFT: median 0.4 s, sigma 0.35; price: $1/4 per million tokens" in said
    header, *rows = said[said.index("sent to") :].splitlines()
    assert header.split()[2:] == ["gpu-2", "far"]
    assert [row.split()[0] for row in rows] == ["overflow", "depth:4", "cloud"]
    document = json.loads(path.read_text())
    assert [each["name"] for each in (document["provider"], *document["others"])] == ["gpu-2", "far"]
    assert set(document["policies"][0]["sent"]) <= {"gpu-2", "far"}


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (["zone=premises"], "begins with a name"),
        (["a colour=red"], "--provider a: colour: the keys are weight, zone"),
        (["a zone=moon"], "--provider a: zone: expected"),
        (["a weight=0"], "--provider a: weight: expected a number above 0"),
        (["a prices=x,y"], "--provider a: prices 'x,y': expected INPUT,OUTPUT"),
        (["a", "a"], "--provider a: described twice"),
    ],
)
def test_provider_that_is_described_wrongly_is_refused(
    spec: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, *SHORT, *(word for each in spec for word in ("--provider", each)))


def test_the_bound_is_for_one_provider_in_the_cloud(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--bound" in refused(capsys, *SHORT, *NEAR_AND_FAR, "--bound")
