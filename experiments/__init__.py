"""What is done with stackjax: sweeps, claims, benchmarks, and checks against others."""
