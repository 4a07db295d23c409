"""What one run of a pair shows: its sites, scales, supports, distributions and parameters."""

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import Independent, kl_divergence

from pyrovae.importance import check_support, inspect, site_log_probs
from pyrovae.testing.report import Row
from pyrovae.testing.work import Work

SUPPORT_DRAWS = 16
FINITE_DRAWS = 8


def sites(work: Work) -> Iterator[Row]:
    """Yield the rules of a valid pair that are broken."""
    name = "sites and plates"
    for site, rule in work.structure.problems:
        yield Row(name, "FAILS", f"site {site!r}: {rule}", site)
    if work.structure.problems:
        return
    latents, rest = work.latents, [s for s in work.structure.sites if s not in work.latents]
    what = f"latent {', '.join(latents) or '(none)'}; other {', '.join(rest) or '(none)'}"
    if work.structure.datum is None:
        yield Row(name, "note", f"{what}; no observed site whose value is x")
    else:
        yield Row(name, "ok", what)


def registered(work: Work) -> Iterator[Row]:
    """Yield modules whose names another tensor holds in the store, and those not registered."""
    name = "module names"
    store = work.parameters
    for parameter, offered in work.offered:
        if isinstance(offered, nn.Parameter) and offered is not store.get(parameter):
            detail = (
                f"parameter {parameter!r}: the parameter store holds another tensor under this "
                "name, so this module is never trained; register each module under a name of its "
                "own, or pyro.clear_param_store() before"
            )
            yield Row(name, "FAILS", detail, parameter)
            return
    names = {n for n, _ in work.offered}
    loose = [n for n in store if n not in names]
    if loose:
        detail = (
            f"{len(loose)} parameters, the first {loose[0]!r}, are not registered by pyro.module: "
            "SVI does not train them"
        )
        yield Row(name, "note", detail)
    else:
        yield Row(name, "ok", f"{len(store)} parameters, each under a name of its own")


def scales(work: Work) -> Iterator[Row]:
    """Yield latents whose scale or mask differs from side to side, and betas."""
    name = "scales"
    ours, theirs = work.run()
    failed = False
    for site in work.latents:
        ours_plate, theirs_plate = _plate_scale(ours[site]), _plate_scale(theirs[site])
        if ours_plate != theirs_plate:
            failed = True
            detail = (
                f"site {site!r}: the guide's plate scales by {theirs_plate:g}, the model's by "
                f"{ours_plate:g}: give both plates the same size and subsample_size"
            )
            yield Row("subsample scale", "FAILS", detail, site)
        elif differs := _differ(theirs[site]["scale"], ours[site]["scale"], len(work.x)):
            failed = True
            detail = (
                f"site {site!r}: TraceMeanField uses the guide's scale {_short(differs[0])}, the "
                f"model's is {_short(differs[1])}: wrap both sides in the same poutine.scale, or "
                "neither"
            )
            yield Row(name, "FAILS", detail, site)
        if differs := _differ(_mask(theirs[site]), _mask(ours[site]), len(work.x)):
            failed = True
            detail = (
                f"site {site!r}: TraceMeanField uses the guide's mask, {bool(differs[0])} at row "
                f"{int(differs[2])}, the model's is {bool(differs[1])}: mask both sides alike"
            )
            yield Row("masks", "FAILS", detail, site)
    if failed:
        return
    observed = [s["scale"] for s in ours.values() if s["is_observed"]]
    betas = {
        site: found[0] / found[1]
        for site in work.latents
        for scale in observed[:1]
        if (found := _differ(ours[site]["scale"], scale, len(work.x)))
    }
    if betas:
        each = ", ".join(f"{beta:g} for {site!r}" for site, beta in betas.items())
        yield Row(name, "note", f"a beta-ELBO with beta = {each}")
    else:
        yield Row(name, "ok", "equal on both sides")


def subsampling(work: Work) -> Iterator[Row]:
    """Yield sites whose scale does not follow from the number of rows."""
    name = "subsample scale"
    n, half = len(work.x), len(work.x) // 2
    few = work.rows(slice(half))
    for site, rule in inspect(few.model, few.guide, few.x, *few.c, modules=few.modules).problems:
        yield Row(name, "FAILS", f"site {site!r}: on the first {half} rows alone, {rule}", site)
        return
    whole, part = work.run(), few.run()
    kinds: dict[str, str] = {}
    for side, full, less in zip(("model", "guide"), whole, part, strict=True):
        for site in full:
            s, t = full[site]["scale"], less[site]["scale"]
            if isinstance(s, Tensor) and s.numel() > 1:
                continue  # a weight for each row
            s, t = float(s), float(t)
            same, total = _close(s, t), _close(s * n, t * half)
            if not same and not total:
                detail = (
                    f"site {site!r}: in the {side} the scale is {s:g} on {n} rows and {t:g} on "
                    f"{half}: expected the same (a sum over the batch) or size / rows (an "
                    "estimate for the whole data set)"
                )
                yield Row(name, "FAILS", detail, site)
                return
            if side == "model":
                kinds[site] = "a sum over the batch" if same else f"for {s * n:g} rows in all"
    if len(set(kinds.values())) > 1:
        site = next((s for s in work.latents if s in kinds), next(iter(kinds)))
        other = next(s for s in kinds if kinds[s] != kinds[site])
        detail = (
            f"site {site!r}: its scale is {kinds[site]}, that of {other!r} is {kinds[other]}, so "
            "their ratio depends on the batch size: scale all sites alike, by the plate"
        )
        yield Row(name, "FAILS", detail, site)
    else:
        yield Row(name, "ok", next(iter(kinds.values()), "one weight a row"))


def reparameterisation(work: Work) -> Iterator[Row]:
    """Yield continuous latents without rsample, discrete ones, and those with no closed KL."""
    ours, theirs = work.run()
    name = "reparameterisation"
    broken = [
        s for s in work.structure.latents if not s.support.is_discrete and not s.reparameterised
    ]
    discrete = [s.name for s in work.structure.latents if s.support.is_discrete]
    for s in broken:
        if s.in_guide:
            detail = (
                f"site {s.name!r}: the guide's {_kind(theirs[s.name])} has no rsample, so "
                "Trace_ELBO falls back to score-function gradients, and TraceMeanField_ELBO does "
                "not apply"
            )
            yield Row(name, "FAILS", detail, s.name)
    if discrete:
        detail = (
            f"{', '.join(discrete)} discrete: TraceMeanField_ELBO does not apply, TraceEnum_ELBO "
            "does"
        )
        yield Row(name, "note", detail)
    elif not broken:
        yield Row(name, "ok", "every latent has rsample")
    for site in work.latents:
        if work.structure.sites[site].support.is_discrete:
            continue
        try:
            kl_divergence(theirs[site]["fn"], ours[site]["fn"])
        except NotImplementedError:
            pair = f"({_kind(theirs[site])}, {_kind(ours[site])})"
            detail = f"site {site!r}: sampled KL, none is registered for {pair}"
            yield Row("closed KL", "note", detail, site)


def supports(work: Work) -> Iterator[Row]:
    """Yield observed sites whose data are off the support, and latents that the guide draws off."""
    name = "support"
    failed = False
    ours, _ = work.run()
    for site in work.structure.sites.values():
        if site.observed and site.in_model:
            try:
                check_support(site, ours[site.name]["value"])
            except ValueError as error:
                failed = True
                yield Row(name, "FAILS", str(error), site.name)
    many, _ = work.repeated(SUPPORT_DRAWS).run()
    for latent in work.latents:
        fn, z = many[latent]["fn"], many[latent]["value"]
        good = fn.support.check(z)
        if not bool(good.all()):
            failed = True
            i = int((~good).nonzero()[0, 0])
            value = ", ".join(f"{v:.4g}" for v in z[i].flatten()[:3].tolist())
            detail = (
                f"site {latent!r}: the guide draws ({value}) at row {i % len(work.x)}, off the "
                f"support {base_support(fn.support)} of the model's {_kind(many[latent])}"
            )
            yield Row(name, "FAILS", detail, latent)
    if not failed:
        yield Row(name, "ok", "data and draws of the guide lie on it")


def finiteness(work: Work) -> Iterator[Row]:
    """Yield sites whose log-density is not finite at draws of the guide."""
    name = "finite log-densities"
    z = work.draws(FINITE_DRAWS)
    failed = False
    for side, function in (("model", work.model), ("guide", work.guide)):
        try:
            log_p = densities(work, function, z)
        except (NotImplementedError, KeyError):
            continue  # a guide that cannot score a given z
        for site, values in log_p.items():
            bad = ~values.isfinite()
            if bool(bad.any()):
                failed = True
                row = int(bad.any(0).nonzero()[0])
                value = float(values[:, row][bad[:, row]][0])
                detail = (
                    f"site {site!r}: its log-density in the {side} is {value} at row {row}; "
                    f"not finite at {int(bad.any(0).sum())} of {len(work.x)} rows"
                )
                yield Row(name, "FAILS", detail, site)
    if not failed:
        yield Row(name, "ok", f"at {FINITE_DRAWS} draws a row")


def row_independence(work: Work) -> Iterator[Row]:
    """Yield sites where a row's log-density depends on other rows, or on its place."""
    name = "row independence"
    z, n = work.draws(1), len(work.x)
    half = n // 2
    views = {
        "in reverse order: it depends on the order of the data": torch.arange(n - 1, -1, -1),
        f"with rows 0..{half - 1} alone: it depends on other rows": torch.arange(half),
        f"with rows {half}..{n - 1} alone: it depends on other rows": torch.arange(half, n),
    }
    failed = False
    for side, function in (("model", work.model), ("guide", work.guide)):
        try:
            whole = densities(work, function, z)
        except (NotImplementedError, KeyError):
            yield Row(name, "note", f"the {side} cannot score a given z: its rows are unchecked")
            failed = True
            continue
        for view, index in views.items():
            rows = f"{side}'s log-density of row"
            some = {site: v[:, index] for site, v in z.items()}
            try:
                part = densities(work.rows(index), function, some)
            except Exception as error:
                reason = (str(error).splitlines() or [""])[0]
                detail = f"the {side} cannot be run {view}: {type(error).__name__}: {reason}"
                yield Row(name, "FAILS", detail, side)
                failed = True
                break
            tolerance = work.tolerance
            wrong = {
                site: bad
                for site, v in whole.items()
                if (bad := ~torch.isclose(
                    part[site], v[:, index], rtol=tolerance, atol=tolerance, equal_nan=True
                )).any()
            }  # fmt: skip
            for site, bad in wrong.items():
                at = int(bad[0].nonzero()[0])
                was, now = float(whole[site][0, index[at]]), float(part[site][0, at])
                detail = (
                    f"site {site!r}: the {rows} {int(index[at])} changes from {was:.6g} to "
                    f"{now:.6g} {view}"
                )
                yield Row(name, "FAILS", detail, site)
            if wrong:
                failed = True
                break
    if not failed:
        yield Row(name, "ok", f"the same on {n} rows, reversed, and in two halves")


def densities(work: Work, function: Any, z: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the log-density of each site at latents (K, N, ...), without gradients."""
    with torch.no_grad():
        return site_log_probs(function, z, work.x, *work.c, modules=work.modules)


def _kind(site: Any) -> str:
    d = site["fn"]
    while isinstance(d, Independent):
        d = d.base_dist
    return type(d).__name__


def base_support(support: Any) -> Any:
    """Return a support without its event dimensions."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


def _plate_scale(site: Any) -> float:
    scale = 1.0
    for frame in site["cond_indep_stack"]:
        scale *= (frame.full_size or frame.size) / frame.size
    return scale


def _mask(site: Any) -> Any:
    return True if site["mask"] is None else site["mask"]


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _close(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * max(abs(a), abs(b))


def _differ(a: Any, b: Any, rows: int) -> tuple[float, float, float] | None:
    """Return (a, b, row) at the first row where two scales or masks differ."""
    first, second = (torch.as_tensor(t, dtype=torch.float64).expand(rows) for t in (a, b))
    bad = ~torch.isclose(first, second, rtol=1e-6, atol=0.0)
    if not bool(bad.any()):
        return None
    row = int(bad.nonzero()[0])
    return float(first[row]), float(second[row]), row
