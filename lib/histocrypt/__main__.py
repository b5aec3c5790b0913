from histocrypt.cli import main

main()
