"""Win rates by a judge: questions in both orders, a server's answers, and what is kept of them."""
