"""What the engine costs, beside its peers. Nothing here is imported by the pipeline itself."""
