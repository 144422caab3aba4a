"""The report: figures, tables and one HTML page from the artifacts of a run folder. No JAX.

For readers of a run: `report.write_report(folder)` writes RUN/report.html with everything
inline, RUN/figures as SVG and RUN/tables as CSV. It needs nothing but the folder, so any figure
is drawn again in seconds, and it draws what a plan alone can show before anything is measured.

- `report`: the page, from its template.
- `contents`: the artifacts, read once and checked against each other.
- `summary`: the first screen, which allocation to take and what it costs and loses; then
  network, budget, examples.
- `figures`: the list of all figures with title and caption, the first three open on the page,
  the rest folded. `figure_accuracy`, `figure_bits`, `figure_finetuning`, `figure_gap`,
  `figure_latency`, `figure_prediction` and `figure_sensitivity` draw them.
- `figure_study`: a value against size for a whole study, at a journal's column width.
- `tables`: the list of all tables; each is shown on the page and written as CSV.
- `measured`: measured outcomes as the figures need them.
- `style`: colours, markers, sizes, shared by all figures.

To add a figure, write ``figure_NAME.py``: a function of plain values that returns a matplotlib
`Figure`, or raises ``style.NothingToDrawError`` with the reason. Draw it in
``figures.draw_figures`` with a title and a caption, and add its name to ``figures._MEASURED``
if it needs an evaluation; page and files follow by themselves. tests/report/test_report_page.py
names every figure. To add a table, write a function of `Contents` and name it in
``tables.all_tables``. A new artifact is read in ``contents.read_contents``.
"""
