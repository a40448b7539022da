"""Studies that compress nothing: checks of theories, and questions asked of finished rows."""
