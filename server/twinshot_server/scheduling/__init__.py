"""Which request is drawn when: jobs, what they cost, who goes first, what is accepted, and the dispatcher."""
