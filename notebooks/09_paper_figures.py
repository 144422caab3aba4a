# ---
# jupyter:
#   jupytext:
#     formats: py:percent
# ---

# %% [markdown]
# # How does a study become a paper's figure?
#
# A study runs every combination of its lists and does each step once. This one asks which
# metric chooses best at equal size, with two draws of the calibration examples.

# %%
import pathlib
import tempfile

from jmpq import study
from jmpq.report.figure_study import study_figure, write_figure

folder = pathlib.Path(tempfile.mkdtemp())
_ = (folder / "study.toml").write_text("""
draws = [0, 1]
examples = [64]
bits = ["W2,3,4,8"]
metrics = ["gauss_newton", "empirical_fisher", "squared_error"]
budgets = ["size_bytes=W3", "size_bytes=W4"]
baselines = ["uniform"]

[networks.digits]
model = "digits_resnet"
data = "digits"
train.epochs = 2
""")

# %% [markdown]
# Run it. If interrupted, the same call resumes; another metric would compute only what is new.

# %%
table = study.run_study(study.read_study(folder / "study.toml"), folder / "out")
print(f"{len(table.rows)} rows: {', '.join(list(table.rows[0])[:12])}, ...")

# %% [markdown]
# The table of the paper: means over draws, with standard errors over draws and examples. The
# best of a column is bold; entries in italics are not significantly worse.

# %%
pivot = study.tabulate(table, "metric", "budget", "kl")
print(pivot.markdown())
print(pivot.latex())

# %% [markdown]
# The same as a figure, at the column width and font size of a venue, written as SVG, PDF and
# PNG. `jmpq study FILE --out DIR --style icml` does all of this.

# %%
figure = study_figure(table, "kl", look="icml")
files = write_figure(figure, folder / "out", "metrics")
print("wrote", ", ".join(path.name for path in files))
figure
