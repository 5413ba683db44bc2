"""Measurements: what the documentation says of quality and speed, one command for each page.

`studies/NAME` sets up the environment and runs the module of that name. These write what
docs/results holds:

    compare          ours beside ggml types and the paper's recipe at equal size: tables of
                     quality.md, docs/llama.cpp.md and docs/method.md on stdout
    real_models      whole files of llama.cpp's types and ours, of any GGUF file or folder, at equal
                     bytes; resumable row by row: real_models.md
    measure          quality and speed through files and the runtime: tables of quality.md on stdout
    bench_synthetic  speed beside llama.cpp on 1.1 billion weights: benchmarks.md, behind speed.md
    export_profile   where the time of an export goes, beside floors: a table of speed.md on stdout
    ablation         what each part of the method is worth: ablation.md and ablation.svg
    claims           what the paper's abstracts state, checked: claims.md
    compare_formats  what the layout of the file costs: a table of docs/format.md on stdout
    byte_order       where a window's upper bits could come from: tables of byte_order.md on stdout

This one compares two checkouts of the repository, before and after a change:

    compare_checkouts  the bytes of exports, keys of --json, exit statuses; speed in alternation

These make models:

    train_reference  trains the bundled model, or a larger one
    synthetic        writes a Llama of random weights and any size

The other modules are theirs: ablation_lab, ablation_tables, ablation_svg, claims_rows,
byte_order_lab, byte_order_data and byte_order_counts, real_reference (a float model of a quantized
file), real_files, real_scores and real_page of one study each; block_cycles, oracle (transformers
with a file's weights), ggml (llama.cpp's own quantizers), text_halves and paths of several.

Studies import gwq_export, the build script's flags and each other, never tests or tools.
"""
