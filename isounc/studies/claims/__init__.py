"""The paper's twelve claims, settled from the tables of all studies."""
