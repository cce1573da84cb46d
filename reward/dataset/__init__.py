"""Problems from files and Hugging Face data sets, for tasks whose problems are rows."""
