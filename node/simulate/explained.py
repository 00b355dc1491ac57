"""What `node.simulate.explaining` found, as text for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence

from node.money import NANO_PER_USD
from node.simulate.comparing import lines, usd
from node.simulate.explaining import Explanation, Group, Side

_SHOWN_SPELLS = 3


def text(found: Explanation) -> str:
    """For a terminal."""
    policy, other = found.policy, found.other
    most = max(policy.spend_nano_usd, other.spend_nano_usd)
    more = "more" if found.excess_nano_usd >= 0 else "less"
    told = [
        f"why {policy.policy} paid ${usd(abs(found.excess_nano_usd), most)} {more} than {other.policy} "
        f"(${usd(policy.spend_nano_usd, most)} and ${usd(other.spend_nano_usd, most)}):",
        "",
    ]
    rows = [("", "requests", "more $", "prompt tokens", "too early")]
    for title, groups in (
        (f"sent by {policy.policy} only", found.only_policy),
        (f"sent by {other.policy} only", found.only_other),
    ):
        count = sum(group.requests for group in groups)
        prompts = sum(group.requests * group.mean_prompt_tokens for group in groups)
        rows.append(
            (
                title,
                f"{count:,}",
                usd(sum(group.excess_nano_usd for group in groups), most),
                f"{prompts / count:,.0f}" if count else "-",
                f"{sum(group.too_early for group in groups):,}",
            )
        )
        rows += [
            (
                f"  {group.reason}, {'in a rush' if group.rush else 'calm'}",
                f"{group.requests:,}",
                usd(group.excess_nano_usd, most),
                f"{group.mean_prompt_tokens:,.0f}",
                f"{group.too_early:,}",
            )
            for group in groups
        ]
    rows.append(("sent by both", f"{found.both:,}", usd(found.both_excess_nano_usd, most), "", ""))
    told += lines(rows)
    sign = 1 if found.excess_nano_usd >= 0 else -1
    dearest = [each for each in found.spells if sign * each.excess_nano_usd > 0]
    dearest.sort(key=lambda spell: (-abs(spell.excess_nano_usd), spell.from_s))
    if dearest:
        spells = (
            f"{each.from_s:,.0f} to {each.to_s:,.0f} s (${usd(abs(each.excess_nano_usd), most)})"
            for each in dearest[:_SHOWN_SPELLS]
        )
        told += ["", f"most of it: {', '.join(spells)}"]
    if policy.step_tokens is not None and other.step_tokens is not None:
        told.append(
            f"prompt tokens in a step with any: {policy.step_tokens:,.0f} in the mean, "
            f"{other.step_tokens:,.0f} with {other.policy}, at most {found.most_step_tokens:,}"
        )
    return "\n".join(told)


def as_json(found: Explanation) -> dict[str, object]:
    """Everything, in dollars and seconds."""

    def side(of: Side) -> dict[str, object]:
        return {
            "policy": of.policy,
            "spend_usd": of.spend_nano_usd / NANO_PER_USD,
            "sent": of.sent,
            "mean_step_tokens": of.step_tokens,
        }

    def groups(of: Sequence[Group]) -> list[dict[str, object]]:
        return [
            {
                "reason": group.reason,
                "rush": group.rush,
                "requests": group.requests,
                "excess_usd": group.excess_nano_usd / NANO_PER_USD,
                "mean_prompt_tokens": group.mean_prompt_tokens,
                "too_early": group.too_early,
            }
            for group in of
        ]

    return {
        "policy": side(found.policy),
        "other": side(found.other),
        "excess_usd": found.excess_nano_usd / NANO_PER_USD,
        "sent_by_policy_only": groups(found.only_policy),
        "sent_by_other_only": groups(found.only_other),
        "sent_by_both": found.both,
        "sent_by_both_excess_usd": found.both_excess_nano_usd / NANO_PER_USD,
        "spells": [
            {"from_s": each.from_s, "to_s": each.to_s, "excess_usd": each.excess_nano_usd / NANO_PER_USD}
            for each in found.spells
        ],
    }
