"""How good reconstructions are: pixel metrics, identification, their statistics, named protocols."""
