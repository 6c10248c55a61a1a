"""
A shop in Django: an order, Stripe's checkout, one receipt.

    pip install 'postroom[django]' uvicorn
    export PGHOST=localhost PGUSER=shop PGPASSWORD=… PGDATABASE=shop STRIPE_WEBHOOK_SECRET=whsec_…
    python manage.py migrate
    uvicorn shop.asgi:application        # the shop, and postroom's doors at /postroom
    python manage.py postroom worker     # sends the mails and runs the handler
"""
