"""How the coordinator reaches its agents. Transport and placement only; what runs where is dispatch's affair."""
