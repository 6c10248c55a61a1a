"""What is wrong is told to people before users notice. It reads the whole house, and sends past its queue."""
