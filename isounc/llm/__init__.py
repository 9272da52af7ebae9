"""Language models: the isotropic estimate of their answers, against what else says that an answer is wrong."""
