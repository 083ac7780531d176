"""What a backend of the criterion supplies, the plain forms of it, and the algebra that all of them share."""
