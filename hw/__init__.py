"""Open hardware of edgeseal: designs as code, with their models and checks."""
