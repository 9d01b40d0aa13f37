"""A teacher model that writes data: personas, questions, answers, and who asks it for them."""
