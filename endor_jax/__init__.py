"""endor_jax: run large language models on GPUs too small for them, by streaming compressed sparse weights."""
