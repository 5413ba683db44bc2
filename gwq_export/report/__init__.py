"""What a file tells of itself, as a page and as a model card; a benchmark as a page.

Modules import only those listed above them:
    facts
    html
    charts
    matrices
    page
    card
    measurements
    benchmark
"""
