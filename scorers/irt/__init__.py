"""Item response theory: response tables in; abilities, item parameters and their errors out."""
