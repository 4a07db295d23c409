"""What is asked of the conversion under either ArviZ: `python tests/arviz_one.py` under 1.x.

Needs ArviZ, matplotlib and netCDF4 or h5netcdf, but neither torch nor Pyro, which pyrovae imports:
the modules of pyrovae.convert that know plain arrays alone are loaded by their path. `test_convert`
makes the same checks in process, under the ArviZ it has. Prints a line for each check; any failure
ends it.
"""

import importlib.util
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1] / "pyrovae" / "convert"
S, N, D = 60, 5, 3
DIMS, COORDS = {"z": ["latent"]}, {"latent": ["u", "v"], "data": [10, 11, 12, 13, 14]}
EXPECTED = {  # group -> variable -> dimensions
    "posterior": {"z": ("chain", "draw", "data", "latent")},
    "posterior_predictive": {"x": ("chain", "draw", "data", "x_dim_0")},
    "prior": {"z": ("chain", "draw", "data", "latent")},
    "prior_predictive": {"x": ("chain", "draw", "data", "x_dim_0")},
    "log_likelihood": {"x": ("chain", "draw", "data")},
    "sample_stats": {"log_weight": ("chain", "draw", "data")},
    "observed_data": {"x": ("data", "x_dim_0")},
    "constant_data": {"context_0": ("data", "context_0_dim_0"), "pareto_k": ("data",)},
}


def load(name):
    """A module of pyrovae.convert that knows no torch, by its path."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arrays():
    """Arrays by group and variable, always the same."""
    rng = np.random.default_rng(5)
    shapes = {
        "posterior": {"z": (1, S, N, 2)},
        "posterior_predictive": {"x": (1, S, N, D)},
        "prior": {"z": (1, S, N, 2)},
        "prior_predictive": {"x": (1, S, N, D)},
        "log_likelihood": {"x": (1, S, N)},
        "sample_stats": {"log_weight": (1, S, N)},
        "observed_data": {"x": (N, D)},
        "constant_data": {"context_0": (N, 1), "pareto_k": (N,)},
    }
    return {
        group: {name: rng.normal(size=shape).astype(np.float32) for name, shape in each.items()}
        for group, each in shapes.items()
    }


def convert(module):
    """The arrays as ArviZ's object, by `module`, which is pyrovae.convert.arrays."""
    events = {"z": (2,), "x": (D,), "context_0": (1,), "pareto_k": (), "log_weight": ()}
    named = module.name_dims(events, range(N), DIMS, COORDS)
    notes = {"log_likelihood": {"note": "not for loo"}}
    return module.from_arrays(arrays() | {"empty": {}}, *named, notes)


def groups_of(result):
    """The names of the groups: a method of InferenceData, a property of DataTree."""
    found = result.groups() if callable(result.groups) else result.groups
    return {name.strip("/") for name in found} - {""}


def check_content(result):
    """Groups, variables, dimensions, labels and values are those that went in."""
    assert groups_of(result) == set(EXPECTED)
    for group, values in arrays().items():
        assert set(result[group].data_vars) == set(EXPECTED[group])
        for name, value in values.items():
            found = result[group][name]
            assert found.dims == EXPECTED[group][name], found.dims
            assert found.dtype == value.dtype
            np.testing.assert_array_equal(found.values, value)
            for dim in found.dims:
                labels = COORDS.get(dim, np.arange(found.sizes[dim]))
                np.testing.assert_array_equal(found[dim].values, labels)
    assert result["log_likelihood"].attrs["note"] == "not for loo"


def check_equal(one, other):
    """The same groups, with the same variables, coordinates and values, NaN equal to NaN."""
    assert groups_of(one) == groups_of(other)
    for group in groups_of(one):
        ours, theirs = (_dataset(result[group]) for result in (one, other))
        assert ours.equals(theirs), group
        assert {n: v.dtype for n, v in ours.data_vars.items()} == {
            n: v.dtype for n, v in theirs.data_vars.items()
        }


def _dataset(group):
    return group.to_dataset() if hasattr(group, "to_dataset") else group


def check_table(tables):
    """The comparison's table, by `tables`, which is pyrovae.convert.tables."""
    rng = np.random.default_rng(7)
    a = rng.normal(-100, 10, 200)
    table = tables.compare_evidence({"worse": a - rng.normal(0.5, 1.0, 200), "better": a})
    assert list(table.index) == ["better", "worse"] and list(table["rank"]) == [0, 1]
    assert table["elpd_diff"].iloc[0] == 0 and table["elpd_diff"].iloc[1] < -50
    assert table["dse"].iloc[1] < table["se"].iloc[1] / 5
    return table


def main():
    import matplotlib

    matplotlib.use("Agg")
    import arviz as az
    import matplotlib.pyplot as plt

    if int(az.__version__.split(".")[0]) < 1:
        sys.exit(f"expected ArviZ 1.x; got {az.__version__}")
    result = convert(load("arrays"))
    assert type(result).__name__ == "DataTree"
    check_content(result)
    print("OK content of the DataTree")
    with tempfile.TemporaryDirectory() as folder:
        result.to_netcdf(Path(folder) / "result.nc")
        check_equal(result, az.from_netcdf(Path(folder) / "result.nc").load())
        print("OK NetCDF")
        if importlib.util.find_spec("zarr"):
            result.to_zarr(Path(folder) / "result.zarr")
            check_equal(result, az.from_zarr(Path(folder) / "result.zarr").load())
            print("OK Zarr")
    summary = az.summary(result, var_names=["z"], round_to="none")
    assert len(summary) == 2 * N
    means = arrays()["posterior"]["z"].mean((0, 1)).ravel()
    np.testing.assert_allclose(summary["mean"].to_numpy(float), means, rtol=1e-5, atol=1e-6)
    print("OK summary")
    table = check_table(load("tables"))
    one = result.sel(data=[10])
    for name, draw in {
        "plot_dist": lambda: az.plot_dist(one),
        "plot_forest": lambda: az.plot_forest({"guide": one, "again": one}),
        "plot_prior_posterior": lambda: az.plot_prior_posterior(one),
        "plot_ppc_dist": lambda: az.plot_ppc_dist(result, num_samples=20),
        "plot_khat": lambda: az.plot_khat(result.constant_data),
        "plot_compare": lambda: az.plot_compare(table),
        "plot_compare, absolute": lambda: az.plot_compare(table, relative_scale=False),
    }.items():
        draw()
        assert plt.get_fignums(), name
        plt.close("all")
        print(f"OK {name}")


if __name__ == "__main__":
    main()
