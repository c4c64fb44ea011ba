-- Positions, and the orders that belong to them. `positions.id` is the position_id everywhere:
-- a restart, another machine and an export all find the same stop-loss by it.
--
-- No other place changes these tables' shape, and only backends/positions.py reads and writes them.

-- numeric without a scale keeps every digit; what it would also take (NaN, infinities) is no amount.
CREATE DOMAIN amount AS numeric CHECK (VALUE > '-Infinity' AND VALUE < 'Infinity');

CREATE TABLE positions (
    id                  uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    exchange            varchar(50) NOT NULL CHECK (exchange <> ''),
    symbol              varchar(50) NOT NULL CHECK (symbol <> ''),
    side                text NOT NULL CHECK (side IN ('LONG', 'SHORT')),
    quantity            amount NOT NULL CHECK (quantity >= 0),
    initial_quantity    amount NOT NULL CHECK (initial_quantity >= 0),
    entry_price         amount NOT NULL CHECK (entry_price >= 0),
    current_price       amount,
    unrealized_pnl      amount,
    realized_pnl        amount DEFAULT 0,
    stop_loss           amount,
    take_profit         amount,
    leverage            amount DEFAULT 1,
    margin              amount,
    status              text NOT NULL DEFAULT 'OPEN'
        CHECK (status IN ('OPEN', 'PARTIALLY_CLOSED', 'CLOSED', 'LIQUIDATED')),
    opened_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    closed_at           timestamptz,
    metadata            jsonb DEFAULT '{}' CHECK (jsonb_typeof(metadata) IN ('object', 'string')),
    updated_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (status NOT IN ('OPEN', 'PARTIALLY_CLOSED') OR quantity > 0)
);

CREATE INDEX positions_symbol ON positions (symbol);
CREATE INDEX positions_status ON positions (status);
-- One net position for each symbol and side.
CREATE UNIQUE INDEX positions_one_open ON positions (exchange, symbol, side)
    WHERE status IN ('OPEN', 'PARTIALLY_CLOSED');

-- Of an order `pending` is: known here, not (surely) at the exchange; `open`: at the exchange;
-- a partial fill is `open` with `filled_quantity` above 0. The other three are final.
CREATE TABLE orders (
    order_id            varchar(100) PRIMARY KEY CHECK (order_id <> ''),
    exchange            varchar(50) NOT NULL CHECK (exchange <> ''),
    position_id         uuid REFERENCES positions (id),
    symbol              varchar(50) NOT NULL CHECK (symbol <> ''),
    side                text NOT NULL CHECK (side IN ('buy', 'sell')),
    order_type          text NOT NULL
        CHECK (order_type IN ('market', 'limit', 'stop_loss', 'take_profit')),
    quantity            amount NOT NULL CHECK (quantity > 0),
    price               amount CHECK (price >= 0),
    status              text NOT NULL DEFAULT 'pending'
        CHECK (status IN ('pending', 'open', 'filled', 'cancelled', 'rejected')),
    -- All fills so far. What is here is in the position as well: both change in one transaction.
    filled_quantity     amount NOT NULL DEFAULT 0 CHECK (filled_quantity >= 0),
    filled_value        amount NOT NULL DEFAULT 0 CHECK (filled_value >= 0),
    filled_price        amount CHECK (filled_price >= 0),
    fees                amount,
    filled_at           timestamptz,
    oco_group           uuid,
    exchange_order_id   varchar(100) CHECK (exchange_order_id <> ''),
    -- When a price that crosses was last handed to somebody to act on.
    triggered_at        timestamptz,
    -- The order should go, but it is at the exchange: open until the exchange says otherwise.
    cancel_wanted_at    timestamptz,
    error_message       text,
    metadata            jsonb DEFAULT '{}' CHECK (jsonb_typeof(metadata) IN ('object', 'string')),
    created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (status <> 'filled' OR filled_quantity > 0),
    CHECK (order_type IN ('market', 'limit') OR (price IS NOT NULL AND position_id IS NOT NULL))
);

CREATE INDEX orders_symbol ON orders (symbol);
CREATE INDEX orders_status ON orders (status);
CREATE INDEX orders_order_type ON orders (order_type);
CREATE INDEX orders_position_id ON orders (position_id);
CREATE INDEX orders_oco_group ON orders (oco_group);
CREATE UNIQUE INDEX orders_exchange_order_id ON orders (exchange, exchange_order_id);

CREATE FUNCTION touch_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := clock_timestamp();
    RETURN NEW;
END
$$;

CREATE TRIGGER positions_updated_at BEFORE UPDATE ON positions
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
CREATE TRIGGER orders_updated_at BEFORE UPDATE ON orders
    FOR EACH ROW EXECUTE FUNCTION touch_updated_at();
